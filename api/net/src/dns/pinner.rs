//! The firewall as the one who pins.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::HostSide;
use crate::error::{Cause, Error};
use crate::firewall::Pin;
use crate::policy::BoxPolicy;
use crate::table::BoxNet;

/// Who opens the way to addresses.
pub trait Pinner: Send + Sync {
    /// Lets the box reach addresses for a while; when it returns, they are reachable.
    ///
    /// `under` is the policy that allowed them. If it is not the policy of the box any more, or the box has lost its
    /// network, this fails: a pin that came after a change of the policy would outlive it. Where that is looked at has to
    /// be where changes of the policy are made, one after the other.
    fn pin(&self, box_: &Arc<BoxNet>, under: &Arc<BoxPolicy>, pins: Vec<Pin>) -> BoxFuture<'static, Result<(), Error>>;
}

impl Pinner for Arc<HostSide> {
    /// On the thread that changes the firewall. A new policy is in the table before it gets there, and takes all pins of
    /// the old one with it when it does; so a pin under the old one comes either before that, or not at all.
    fn pin(&self, box_: &Arc<BoxNet>, under: &Arc<BoxPolicy>, pins: Vec<Pin>) -> BoxFuture<'static, Result<(), Error>> {
        let (side, box_, under) = (Self::clone(self), Arc::clone(box_), Arc::clone(under));
        Box::pin(async move {
            let work = move |state: &mut crate::State| {
                if box_.gone().is_cancelled() || !Arc::ptr_eq(&box_.policy(), &under) {
                    let cause = Cause::Invalid("the policy has changed, or the box is gone");
                    return Err(Error::new("pin for", box_.id.clone(), cause));
                }
                state.firewall.pin(box_.pair, &pins)
            };
            side.worker.call(work).await
        })
    }
}

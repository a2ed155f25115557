//! The firewall as the [`Pinner`].

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::error::{Cause, Error};
use crate::firewall::Pin;
use crate::host::HostSide;
use crate::policy::BoxPolicy;
use crate::table::BoxNet;

/// Opens the way to addresses.
pub trait Pinner: Send + Sync {
    /// Lets the box reach addresses for a while; they are reachable when it returns.
    ///
    /// `under` is the policy that allowed them. This fails if it is no longer the policy of the box, or if the box has
    /// lost its network: a pin after a policy change would outlive the change. The check must run where policy changes
    /// are made, in sequence with them.
    fn pin(&self, box_: &Arc<BoxNet>, under: &Arc<BoxPolicy>, pins: Vec<Pin>) -> BoxFuture<'static, Result<(), Error>>;
}

impl Pinner for Arc<HostSide> {
    /// Runs on the thread that changes the firewall. A new policy enters the table of boxes before it reaches the
    /// firewall, and removes all pins of the old one there. So a pin under the old policy either precedes the change or
    /// is refused.
    fn pin(&self, box_: &Arc<BoxNet>, under: &Arc<BoxPolicy>, pins: Vec<Pin>) -> BoxFuture<'static, Result<(), Error>> {
        let (side, box_, under) = (Self::clone(self), Arc::clone(box_), Arc::clone(under));
        Box::pin(async move {
            let pair = box_.pair;
            let check = move || {
                if box_.gone().is_cancelled() || !Arc::ptr_eq(&box_.policy(), &under) {
                    let cause = Cause::Invalid("the policy has changed, or the box is gone");
                    return Err(Error::new("pin for", box_.id.clone(), cause));
                }
                Ok(())
            };
            side.pin_if(check, pair, pins).await
        })
    }
}

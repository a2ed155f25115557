//! What a pull or a push tells on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use icebox_rootfs::images::Progress;

/// Something that happens in a pull or a push.
#[derive(Debug, Clone)]
pub enum Event {
    /// A part of the work, for people.
    Work(String),
    /// Bytes of a layer's blob that have gone over the network. `known`: it need not, the other side has it.
    Transfer(Progress),
    /// A layer is unpacked, or is here already.
    Layer(Progress),
}

/// Receives what happens, on several threads.
pub type Report = Arc<dyn Fn(Event) + Send + Sync>;

/// Bytes between two reports of one transfer.
const STEP_BYTES: u64 = 1 << 20;

/// Reports the bytes of one layer: now and then, and at its end.
pub(crate) fn transfer(
    report: &Report,
    (layer, layers): (usize, usize),
    total: u64,
) -> impl Fn(u64) + Send + Sync + 'static {
    let (report, told) = (Arc::clone(report), AtomicU64::new(0));
    move |done| {
        let last = told.load(Ordering::Relaxed);
        // An upload that begins again goes back.
        if done == 0 || done == total || done < last || done - last >= STEP_BYTES {
            told.store(done, Ordering::Relaxed);
            report(Event::Transfer(Progress { layer, layers: Some(layers), done, total: Some(total), known: false }));
        }
    }
}

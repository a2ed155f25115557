//! How the guest's processor is made. (Whether KVM works here: `kvm`.)

/// How the guest's processor is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The real processor.
    Kvm,
    /// Software, one thread for each of the guest's processors.
    Tcg,
}

impl Accelerator {
    /// QEMU's arguments.
    pub(super) fn arguments(self) -> [&'static str; 4] {
        match self {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    /// What the guest's kernel is told for it. Software translates a program again at each new address; where programs
    /// start at the same one each time, starting one takes 5 ms instead of 27.
    pub(super) fn kernel_parameters(self) -> &'static str {
        match self {
            Accelerator::Kvm => "",
            Accelerator::Tcg => "norandmaps",
        }
    }
}

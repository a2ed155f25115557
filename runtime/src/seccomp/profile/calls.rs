//! The calls that the sandbox profile decides without looking at arguments, by subject. The allowed set is Docker's
//! of June 2026 for x86-64 without what threatens a shared kernel; a name that an architecture lacks is skipped there.

/// Allowed with all arguments. Calls with argument rules are not here but in the tables of the parent.
pub(super) const ALLOWED: &[&str] = &[
    // Reading, writing, descriptors
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile splice tee
     copy_file_range readahead fadvise64 open openat openat2 creat close close_range dup dup2 dup3 fcntl flock
     pipe pipe2 memfd_create fsync fdatasync sync syncfs sync_file_range fallocate ftruncate truncate",
    // Names, attributes, directories
    "stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 getdents getdents64 getcwd chdir
     fchdir mkdir mkdirat rmdir link linkat symlink symlinkat readlink readlinkat unlink unlinkat rename renameat
     renameat2 chmod fchmod fchmodat fchmodat2 chown fchown fchownat lchown umask utime utimes futimesat utimensat
     getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat listxattr llistxattr flistxattr
     listxattrat removexattr lremovexattr fremovexattr removexattrat inotify_init inotify_init1 inotify_add_watch
     inotify_rm_watch landlock_create_ruleset landlock_add_rule landlock_restrict_self cachestat",
    // Memory
    "brk mmap munmap mremap mprotect madvise mincore msync mlock mlock2 munlock mlockall munlockall membarrier mseal
     map_shadow_stack pkey_alloc pkey_free pkey_mprotect process_vm_readv process_vm_writev",
    // Waiting for events
    "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
     epoll_ctl_old epoll_wait_old eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime",
    // Processes, threads, locks
    "fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid getpgrp setpgid getsid
     setsid kill tkill tgkill pidfd_open pidfd_send_signal ptrace seccomp arch_prctl set_tid_address set_thread_area
     get_thread_area set_robust_list get_robust_list rseq futex futex_wait futex_wake futex_waitv restart_syscall",
    // Signals
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigpending rt_sigtimedwait rt_sigqueueinfo
     rt_tgsigqueueinfo sigaltstack pause alarm",
    // Users and capabilities
    "getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid setresgid
     setfsuid setfsgid setgroups capget capset",
    // Scheduling and limits
    "sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam
     sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval getcpu
     getpriority setpriority ioprio_get getrlimit setrlimit prlimit64 getrusage times sysinfo uname getrandom",
    // Time
    "time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep getitimer setitimer timer_create
     timer_settime timer_gettime timer_getoverrun timer_delete",
    // Sockets
    "bind listen accept accept4 connect shutdown getsockname getpeername getsockopt sendto sendmsg sendmmsg recvfrom
     recvmsg recvmmsg",
    // System V and POSIX IPC
    "shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink
     mq_timedsend mq_timedreceive mq_notify mq_getsetattr",
];

/// Known and refused with EPERM.
pub(super) const DENIED: &str = "
    unshare setns chroot pivot_root mount umount2 mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick
    statmount listmount name_to_handle_at open_by_handle_at quotactl quotactl_fd swapon swapoff
    fanotify_init fanotify_mark sysfs ustat uselib lookup_dcookie
    bpf perf_event_open userfaultfd memfd_secret vmsplice remap_file_pages modify_ldt uprobe uretprobe
    keyctl add_key request_key kcmp pidfd_getfd process_madvise process_mrelease futex_requeue
    mbind set_mempolicy get_mempolicy set_mempolicy_home_node migrate_pages move_pages ioprio_set
    init_module finit_module delete_module kexec_load kexec_file_load reboot acct syslog vhangup iopl ioperm
    sethostname setdomainname settimeofday clock_settime clock_adjtime adjtimex
    lsm_get_self_attr lsm_set_self_attr lsm_list_modules";

/// Answered as by a kernel that lacks them. io_uring runs operations that no filter sees, and libuv falls back only
/// on ENOSYS. The contexts of the older asynchronous I/O have one limit for the whole machine (`fs.aio-max-nr`), which
/// one sandbox could use up; a kernel can be built without it (io_setup(2)), so databases and web servers fall back to
/// threads. The last three are younger than the programs that could know what EPERM means there.
pub(super) const UNAVAILABLE: &str = "
    io_uring_setup io_uring_enter io_uring_register
    io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents
    open_tree_attr file_getattr file_setattr";

/// In the tables, but no kernel that the runtime supports has them: the default answers them with ENOSYS.
#[cfg(test)]
pub(super) const GONE: &str = "
    _sysctl create_module get_kernel_syms query_module nfsservctl getpmsg putpmsg afs_syscall tuxcall security vserver";

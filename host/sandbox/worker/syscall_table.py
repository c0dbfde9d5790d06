"""System call numbers by name, for the two architectures the filter is written for.

Sources: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64) of the kernel.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Final, TypeVar

T = TypeVar("T")
MACHINE: Final = platform.machine()
# AUDIT_ARCH_*, include/uapi/linux/audit.h
ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEWEST_KNOWN: Final = 469
"""file_setattr, Linux 6.17; later calls answer ENOSYS until somebody has judged them."""

# name, number on x86_64, number on aarch64; "-": that architecture does not have the call
_TABLE: Final = """
_sysctl 156 -                     accept 43 202                     accept4 288 242
acct 163 89                       add_key 248 217                   adjtimex 159 171
bind 49 200                       bpf 321 280                       capset 126 91
chmod 90 -                        chown 92 -                        chroot 161 51
clock_adjtime 305 266             clock_settime 227 112             clone 56 220
clone3 435 435                    close_range 436 436               connect 42 203
creat 85 -                        create_module 174 -               delete_module 176 106
execve 59 221                     execveat 322 281                  fallocate 285 47
fanotify_init 300 262             fanotify_mark 301 263             fchmod 91 52
fchmodat 268 53                   fchmodat2 452 452                 fchown 93 55
fchownat 260 54                   fcntl 72 25                       fgetxattr 193 10
file_getattr 468 468              file_setattr 469 469              finit_module 313 273
flistxattr 196 13                 fork 57 -                         fremovexattr 199 16
fsconfig 431 431                  fsetxattr 190 7                   fsmount 432 432
fsopen 430 430                    fspick 433 433                    futimesat 261 -
get_kernel_syms 177 -             getxattr 191 8                    getxattrat 464 464
init_module 175 105               io_uring_enter 426 426            io_uring_register 427 427
io_uring_setup 425 425            ioctl 16 29                       ioperm 173 -
iopl 172 -                        ioprio_set 251 30                 kcmp 312 272
kexec_file_load 320 294           kexec_load 246 104                keyctl 250 219
kill 62 129                       landlock_add_rule 445 445         landlock_create_ruleset 444 444
landlock_restrict_self 446 446    lchown 94 -                       lgetxattr 192 9
link 86 -                         linkat 265 37                     listen 50 201
listmount 458 458                 listxattr 194 11                  listxattrat 465 465
llistxattr 195 12                 lookup_dcookie 212 18             lremovexattr 198 15
lsetxattr 189 6                   memfd_create 319 279              memfd_secret 447 447
migrate_pages 256 238             mkdir 83 -                        mkdirat 258 34
mknod 133 -                       mknodat 259 33                    modify_ldt 154 -
mount 165 40                      mount_setattr 442 442             move_mount 429 429
move_pages 279 239                mq_getsetattr 245 185             mq_notify 244 184
mq_open 240 180                   mq_timedreceive 243 183           mq_timedsend 242 182
mq_unlink 241 181                 msgctl 71 187                     msgget 68 186
msgrcv 70 188                     msgsnd 69 189                     name_to_handle_at 303 264
nfsservctl 180 42                 open 2 -                          open_by_handle_at 304 265
open_tree 428 428                 open_tree_attr 467 467            openat 257 56
openat2 437 437                   perf_event_open 298 241           personality 135 92
pidfd_getfd 438 438               pidfd_open 434 434                pivot_root 155 41
prlimit64 302 261                 process_madvise 440 440           process_mrelease 448 448
process_vm_readv 310 270          process_vm_writev 311 271         ptrace 101 117
query_module 178 -                quotactl 179 60                   quotactl_fd 443 443
reboot 169 142                    removexattr 197 14                removexattrat 466 466
rename 82 -                       renameat 264 38                   renameat2 316 276
request_key 249 218               rmdir 84 -                        rt_sigqueueinfo 129 138
rt_tgsigqueueinfo 297 240         sched_setaffinity 203 122         sched_setattr 314 274
sched_setparam 142 118            sched_setscheduler 144 119        seccomp 317 277
semctl 66 191                     semget 64 190                     semop 65 193
semtimedop 220 192                setdomainname 171 162             sethostname 170 161
setns 308 268                     setpriority 141 140               setsid 112 157
setsockopt 54 208                 settimeofday 164 170              setxattr 188 5
setxattrat 463 463                shmat 30 196                      shmctl 31 195
shmdt 67 197                      shmget 29 194                     socket 41 198
socketpair 53 199                 statmount 457 457                 swapoff 168 225
swapon 167 224                    symlink 88 -                      symlinkat 266 36
sysfs 139 -                       syslog 103 116                    tgkill 234 131
tkill 200 130                     truncate 76 45                    umount2 166 39
unlink 87 -                       unlinkat 263 35                   unshare 272 97
uselib 134 -                      userfaultfd 323 282               ustat 136 -
utime 132 -                       utimensat 280 88                  utimes 235 -
vfork 58 -                        vhangup 153 58                    vmsplice 278 75
"""
_CELLS: Final = _TABLE.split()
_NUMBERS: Final = dict(zip(_CELLS[::3], _CELLS[1 if MACHINE == "x86_64" else 2 :: 3], strict=True))


def number(name: str) -> int | None:
    """Return the number of a call on this machine, None if it has no such call. ``KeyError``: not in the
    table.
    """
    found = _NUMBERS[name]
    return None if found == "-" else int(found)


def by_number(named: Mapping[str, T]) -> dict[int, T]:
    """Return a table by the numbers of those calls that this machine has."""
    return {found: value for name, value in named.items() if (found := number(name)) is not None}

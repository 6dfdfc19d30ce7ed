#!/bin/bash
# Records the consoles in this folder from a real kernel under QEMU (TCG).
#   record.sh VMLINUZ MODULES_DIR OUT_DIR [CASE...]
# VMLINUZ and MODULES_DIR come from an unpacked Debian linux-image-cloud-amd64; needs qemu-system-x86, busybox-static, cpio.
# Each case is what /init does (case= on the command line) and how the machine is started. README.md says what each one shows.
set -eu
kernel=$1 modules=$2 out=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/bin" "$out"
cp "$(command -v busybox)" "$work/root/bin/busybox"
loop=$(find "$modules" -name loop.ko)
cp "$loop" "$work/root/"

# faults.S as modules, with what a module of this very kernel says about itself
objcopy -O binary --only-section=__versions "$loop" "$work/versions.bin"
strings -a "$loop" | sed -n 's/^vermagic=//p' | head -1 | tr -d '\n' > "$work/vermagic.bin"
size=0x$(readelf -SW "$loop" | awk '$2 == ".gnu.linkonce.this_module" || $3 == ".gnu.linkonce.this_module" { print $(NF-5) }' | head -1)
init=0x$(readelf -rW "$loop" | awk '/ init_module / { print $1 }' | tail -1)
kind=0
for fault in null gpf bug warning page divide lockup cli triple; do
  kind=$((kind + 1))
  as --defsym KIND=$kind --defsym MODULE_SIZE="$size" --defsym INIT_OFFSET="$init" -I "$work" -o "$work/root/$fault.ko" "$(dirname "$0")/faults.S"
done

cat > "$work/root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /mnt
mount -t devtmpfs d /dev
mount -t proc p /proc
mount -t sysfs s /sys
case=none
for word in $(cat /proc/cmdline); do case $word in case=*) case=${word#case=};; esac; done
case $case in
ready) echo "labctl-guest: ready"; poweroff -f ;;
poweroff) poweroff -f ;;
sysrq) echo c > /proc/sysrq-trigger ;;
exit) exit 3 ;;
segv) exec sh -c 'kill -SEGV $$; kill -ABRT $$; exit 7' ;;
oom) tail /dev/zero; echo "labctl-guest: ready"; poweroff -f ;;
oomdead) exec tail /dev/zero ;;
oompanic) echo 1 > /proc/sys/vm/panic_on_oom; tail /dev/zero ;;
hung)
  echo 2 > /proc/sys/kernel/hung_task_timeout_secs
  insmod /loop.ko; truncate -s 4M /disk; mke2fs -F /disk; mount -t ext4 -o loop /disk /mnt
  fsfreeze --freeze /mnt; touch /mnt/file & sleep 6
  echo "labctl-guest: ready"; poweroff -f ;;
hungpanic)
  echo 2 > /proc/sys/kernel/hung_task_timeout_secs; echo 1 > /proc/sys/kernel/hung_task_panic
  insmod /loop.ko; truncate -s 4M /disk; mke2fs -F /disk; mount -t ext4 -o loop /disk /mnt
  fsfreeze --freeze /mnt; touch /mnt/file & sleep 60 ;;
lockup) echo 1 > /proc/sys/kernel/watchdog_thresh; echo 1 > /proc/sys/kernel/softlockup_panic; insmod /lockup.ko ;;
fault-*) insmod "/${case#fault-}.ko"; echo "labctl-guest: ready"; poweroff -f ;;
hostile)
  echo "usr: Kernel panic - not syncing: said by a program"; echo "BUG: said by a program"; printf '\033[31mOops: colour\033[0m\a\000\377\376\n'
  echo "labctl-guest: ready"; poweroff -f ;;
reboot) reboot -f ;;
silent) echo "now silent"; sleep 1000 ;;
*) echo "no such case: $case"; poweroff -f ;;
esac
INIT
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio -o -H newc --quiet) > "$work/initrd"
mkdir "$work/empty" && (cd "$work/empty" && mkdir dev && find . | cpio -o -H newc --quiet) > "$work/empty.cpio"
mkdir -p "$work/bad/dev" && (cd "$work/bad" && head -c 300 /dev/urandom > init && chmod +x init && find . | cpio -o -H newc --quiet) > "$work/bad.cpio"

boot() { # NAME SECONDS INITRD APPEND [QEMU OPTIONS...]
  local name=$1 seconds=$2 initrd=$3 append=$4
  shift 4
  timeout -k 1 "$seconds" qemu-system-x86_64 -accel tcg -m 256 -display none -nodefaults -serial stdio \
    -kernel "$kernel" -initrd "$initrd" -append "console=ttyS0 $append" "$@" < /dev/null > "$out/$name.txt" || true
  gzip -9nf "$out/$name.txt"
}

record() {
  case $1 in
  sysrq-panic)    boot "$1" 60 "$work/initrd" "panic=-1 case=sysrq" -no-reboot ;;
  panic-no-time)  boot "$1" 60 "$work/initrd" "panic=-1 printk.time=0 case=sysrq" -no-reboot ;;
  init-exits)     boot "$1" 60 "$work/initrd" "panic=-1 case=exit" -no-reboot ;;
  init-killed)    boot "$1" 60 "$work/initrd" "panic=-1 case=segv" -no-reboot ;;
  no-root)        boot "$1" 60 "$work/empty.cpio" "panic=-1 root=/dev/vda" -no-reboot ;;
  no-init)        boot "$1" 60 "$work/bad.cpio" "panic=-1" -no-reboot ;;
  oom-kill)       boot "$1" 90 "$work/initrd" "panic=-1 case=oom" -no-reboot ;;
  oom-deadlock)   boot "$1" 90 "$work/initrd" "panic=-1 case=oomdead" -no-reboot ;;
  oom-panic)      boot "$1" 90 "$work/initrd" "panic=-1 case=oompanic" -no-reboot ;;
  hung-task)      boot "$1" 90 "$work/initrd" "panic=-1 case=hung" -no-reboot ;;
  hung-task-panic) boot "$1" 90 "$work/initrd" "panic=-1 case=hungpanic" -no-reboot ;;
  rcu-stall)      boot "$1" 30 "$work/initrd" "panic=-1 preempt=none nowatchdog rcupdate.rcu_cpu_stall_timeout=3 sysctl.kernel.panic_on_rcu_stall=1 case=fault-lockup" -no-reboot ;;
  ready)          boot "$1" 60 "$work/initrd" "panic=-1 case=ready" -no-reboot -machine graphics=off ;;
  ready-quiet)    boot "$1" 60 "$work/initrd" "quiet panic=-1 case=ready" -no-reboot ;;
  ready-microvm)  boot "$1" 60 "$work/initrd" "panic=-1 reboot=t case=ready" -no-reboot -M microvm -smp 2 ;;
  ready-q35-smp4) boot "$1" 60 "$work/initrd" "panic=-1 case=ready" -no-reboot -M q35 -smp 4 ;;
  poweroff)       boot "$1" 60 "$work/initrd" "panic=-1 case=poweroff" -no-reboot ;;
  hostile)        boot "$1" 60 "$work/initrd" "panic=-1 case=hostile" -no-reboot ;;
  silent)         boot "$1" 12 "$work/initrd" "panic=-1 case=silent" -no-reboot ;;
  reset-loop)     boot "$1" 14 "$work/initrd" "quiet panic=-1 case=reboot" -machine graphics=off ;;
  soft-lockup)    boot "$1" 60 "$work/initrd" "panic=-1 preempt=none case=lockup" -no-reboot ;;
  fault-cli)      boot "$1" 12 "$work/initrd" "panic=-1 nowatchdog case=$1" -no-reboot ;;
  fault-*)        boot "$1" 60 "$work/initrd" "panic=-1 case=$1" -no-reboot ;;
  oops-panic)     boot "$1" 60 "$work/initrd" "panic=-1 oops=panic case=fault-null" -no-reboot ;;
  no-boot-device) timeout 4 qemu-system-x86_64 -accel tcg -m 64 -display none -nodefaults -serial stdio -machine graphics=off < /dev/null > "$out/$1.txt" || true; gzip -9nf "$out/$1.txt" ;;
  *) echo "no case $1" >&2; return 2 ;;
  esac
}
for name in "$@"; do record "$name"; done

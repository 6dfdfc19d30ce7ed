# Ready means that virtual machines can be made: KVM is loaded, for the CPU that is there. Else the machine ends, with the reason.

while read -r key _ value; do
	case $key in flags) break ;; esac
done </proc/cpuinfo
case " $value " in
*' svm '*) modprobe kvm_amd ;;
*' vmx '*) modprobe kvm_intel ;;
*) echo 'labctl-guest: no hypervisor: the CPU has neither SVM nor VMX' ;;
esac
[ -c /dev/kvm ] || {
	echo 'labctl-guest: no hypervisor: there is no /dev/kvm'
	poweroff -f
}

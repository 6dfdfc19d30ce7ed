# Ready means that virtual machines can be made: the store and the consoles are served, and the first machine is known to the store.

mkdir -p /var/lib/xen /var/lib/xenstored /var/log/xen /run/xen /run/xenstored /proc/xen
ln -s /run /var/run
mount -t xenfs xenfs /proc/xen
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts # a guest's console is a terminal
xenstored --pid-file /run/xenstored.pid && xen-init-dom0 && xenconsoled || {
	echo 'labctl-guest: no hypervisor: its store or its consoles cannot be served'
	poweroff -f
}

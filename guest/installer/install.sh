# Loads the modules that came with the build; then, if the command line asks for it, writes an image to the disk:
#   labctl.install=http://SERVER/offer/TOKEN  labctl.disk=/dev/vda  labctl.pieces=SHA256-of-the-list-of-pieces  labctl.image=BYTES
# The image comes in pieces of 4 MiB, each with its digest. A piece that the disk has already is not fetched, so an interrupted
# installation goes on where it was; each round reads back what the disk holds, past every cache, until a round finds nothing wrong.

for module in /lib/labctl/modules/*.ko; do
	[ -e "$module" ] && insmod "$module"
done

for word in $(cat /proc/cmdline); do
	case $word in labctl.install=* | labctl.disk=* | labctl.pieces=* | labctl.image=*)
		name=${word%%=*}
		eval "${name#labctl.}='${word#*=}'"
		;;
	esac
done
[ -n "$install" ] || exit 0

piece=4194304
say() { echo "labctl-installer: $*"; }
report() { wget -q -O /dev/null --post-data "$*" "$install/report"; }
give_up() {
	say "$*"
	report "failed: $*"
	sleep 1
	poweroff -f
}
digest() { sha256sum | { read -r sum _ && echo "$sum"; }; }
# Bytes of piece $1.
size() {
	left=$((image - $1 * piece))
	[ "$left" -lt "$piece" ] && echo "$left" || echo "$piece"
}
on_disk() { dd if="$disk" bs=$piece skip="$1" count=1 iflag=direct status=none | head -c "$(size "$1")" | digest; }

sh /usr/lib/labctl/network.sh

tries=0
until wget -q -O /run/pieces "$install/pieces" && [ "$(digest </run/pieces)" = "$pieces" ]; do
	tries=$((tries + 1))
	[ "$tries" -lt 10 ] || give_up "the list of pieces does not arrive"
	sleep 1
done
tries=0
while [ ! -b "$disk" ]; do
	tries=$((tries + 1))
	[ "$tries" -lt 20 ] || give_up "there is no disk $disk: $(ls /sys/class/block | tr '\n' ' ')"
	sleep 0.5
done
have=$(blockdev --getsize64 "$disk")
[ "$have" -ge "$image" ] || give_up "the disk $disk has $have bytes, the image $image"

round=0
while :; do
	round=$((round + 1))
	wrong=0 at=0
	while read -r wanted; do
		if [ "$(on_disk $at)" != "$wanted" ]; then
			wrong=$((wrong + 1))
			first=$((at * piece))
			wget -q -O - "$install/image?bytes=$first-$((first + $(size $at) - 1))" |
				dd of="$disk" bs=$piece seek=$at iflag=fullblock conv=notrunc,fsync status=none
		fi
		at=$((at + 1))
	done </run/pieces
	say "round $round: $wrong of $at pieces written"
	report "round $round: $wrong of $at pieces written"
	[ "$wrong" -eq 0 ] && break
	[ "$round" -lt 10 ] || give_up "after $round rounds the disk still does not hold what was sent"
done
say "the disk holds the image"
report "done"
sleep 0.2
poweroff -f

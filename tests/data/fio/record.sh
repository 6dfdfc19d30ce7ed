#!/bin/sh
# Records these reports again: ./record.sh FIO OUT, as root, with Debian's fio or the lab's own.
set -eu
fio=$1 out=$2 work=/dev/shm/fio-record
mkdir -p "$out" "$work/small"
job="--name=cell --filename=$work/f --size=8M --bs=4k --ioengine=io_uring --time_based --runtime=1 --lat_percentiles=1 --clat_percentiles=0 --eta=never --randseed=1"
$fio $job --rw=randread --iodepth=32 --output-format=json+ --output="$out/randread-qd32.json"
$fio $job --rw=write --iodepth=1 --output-format=json+ --output="$out/write-qd1.json"
$fio $job --rw=randrw --iodepth=8 --output-format=json+ --output="$out/randrw-qd8.json"
$fio $job --rw=randread --iodepth=8 --output-format=json --output="$out/without-bins.json"
$fio $job --rw=randread --iodepth=8 --output="$out/text.txt"
mount -t tmpfs -o size=2M none "$work/small"
$fio --name=cell --filename="$work/small/f" --size=8M --bs=4k --rw=write --fallocate=none --ioengine=psync --output-format=json+ \
	--lat_percentiles=1 --clat_percentiles=0 --eta=never >"$out/disk-full.json" || true
umount "$work/small"
$fio $job --runtime=20 --rw=randread --iodepth=8 --output-format=json+ >"$out/terminated.json" &
sleep 2
kill -TERM $!
wait $! || true
rm -rf "$work"
gzip -9nf "$out"/*.json "$out"/*.txt

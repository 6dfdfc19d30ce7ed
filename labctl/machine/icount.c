/* A TCG plugin for QEMU: how many instructions had each CPU run when each byte left the serial port?
 *
 * Every instruction adds one to a counter as it begins, so that the count is exact also where a page fault or an access to a device ends
 * a translated block in its middle; counting whole blocks is not. The same file is preloaded (LD_PRELOAD): it then stands between QEMU
 * and sendmsg(2), through which QEMU's socket console sends each byte while the instruction that wrote it runs. Nothing needs to be known
 * about the UART, and no byte is early or late. A reader that lags makes the machine wait instead of being told to try again, which
 * the guest would see: its serial port would stay busy for as long as the host's scheduler likes.
 *
 * Arguments: console=FD (the socket), counts=FD (shared memory; see labctl/parsers/icount.py), and for a profile trace=FD,at=A:B:C...:
 * which instructions ran until the bytes A, B, C of the console were sent, by their address.
 *
 * QEMU 7.2's header is not packaged by Debian: what is used of its plugin API, version 1, is declared here
 * (https://www.qemu.org/docs/master/devel/tcg-plugins.html). */

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define QEMU(type) extern __attribute__((weak)) type /* absent in the other programs that this is preloaded into */

typedef uint64_t plugin_id;
typedef struct {
    const char *target_name;
    struct { int min, cur; } version;
    bool system_emulation;
    struct { int smp_vcpus, max_vcpus; } system;
} machine_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 };
enum { NO_REGISTERS };

QEMU(void) qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
QEMU(void) qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
QEMU(void) qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
QEMU(size_t) qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
QEMU(struct qemu_plugin_insn *) qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
QEMU(uint64_t) qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);

EXPORT int qemu_plugin_version = 1;

enum { MAGIC, CPUS, ROWS, WRITTEN, HEADER = 8 }; /* of the shared memory, in words of 64 bits; a row of CPUS words follows for each byte */
static const uint64_t magic = 0x31544e554f43424c; /* "LBCOUNT1" */

static int console = -1;
static uint64_t *counts;
static size_t counts_size;

static uint64_t total;       /* instructions of all CPUs; one runs at a time */
static uint64_t handed_over; /* what of it was given to the CPUs' own counts */
static uint64_t *own;
static unsigned current;

static void hand_over(unsigned cpu)
{
    own[current] += total - handed_over;
    handed_over = total;
    current = cpu;
}

static void on_block(unsigned cpu, void *unused)
{
    (void)unused;
    if (cpu != current)
        hand_over(cpu);
}

/* --- the profile: a counter for each address at which an instruction was seen, found by hashing when code is translated ---------- */

struct slot {
    uint64_t address, count, told;
};
enum { CHUNK = 4096, MOST_CHUNKS = 8192 };

static FILE *trace;
static struct slot *chunks[MOST_CHUNKS]; /* translated code holds pointers into them: they never move */
static uint32_t slots;
static uint32_t *table; /* 1 + number of the slot; 0: free */
static uint32_t table_size;
static uint64_t *snapshots; /* offsets on the console, ascending */
static size_t snapshots_left;

static struct slot *slot_at(uint32_t number)
{
    return &chunks[number / CHUNK][number % CHUNK];
}

static uint32_t place_of(uint64_t address)
{
    uint32_t place = (uint32_t)((address * 0x9e3779b97f4a7c15u) >> 32) & (table_size - 1);
    while (table[place] && slot_at(table[place] - 1)->address != address)
        place = (place + 1) & (table_size - 1);
    return place;
}

static void *must(void *memory)
{
    if (!memory) {
        fprintf(stderr, "labctl's plugin: the host has no memory left\n");
        exit(1);
    }
    return memory;
}

static uint64_t *counter_of(uint64_t address)
{
    uint32_t place;
    if (2 * (slots + 1) > table_size) {
        table_size = table_size ? 2 * table_size : 1 << 16;
        free(table);
        table = must(calloc(table_size, sizeof *table));
        for (uint32_t i = 0; i < slots; i++)
            table[place_of(slot_at(i)->address)] = i + 1;
    }
    place = place_of(address);
    if (!table[place]) {
        if (slots == (uint32_t)CHUNK * MOST_CHUNKS)
            must(NULL);
        if (slots % CHUNK == 0)
            chunks[slots / CHUNK] = must(calloc(CHUNK, sizeof(struct slot)));
        slot_at(slots)->address = address;
        table[place] = ++slots;
    }
    return &slot_at(table[place] - 1)->count;
}

/* The offset, the number of addresses that ran since the snapshot before, then (address, how often) for each. */
static void snapshot(uint64_t offset)
{
    uint64_t head[2] = {offset, 0};
    for (uint32_t i = 0; i < slots; i++)
        head[1] += slot_at(i)->count != slot_at(i)->told;
    fwrite(head, sizeof head, 1, trace);
    for (uint32_t i = 0; i < slots; i++) {
        struct slot *slot = slot_at(i);
        if (slot->count != slot->told) {
            uint64_t pair[2] = {slot->address, slot->count - slot->told};
            fwrite(pair, sizeof pair, 1, trace);
            slot->told = slot->count;
        }
    }
    fflush(trace);
}

/* --- QEMU's calls ---------------------------------------------------------------------------------------------------------------- */

static void on_translate(plugin_id id, struct qemu_plugin_tb *block)
{
    size_t count = qemu_plugin_tb_n_insns(block);
    (void)id;
    if (counts[CPUS] > 1)
        qemu_plugin_register_vcpu_tb_exec_cb(block, on_block, NO_REGISTERS, NULL);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *one = qemu_plugin_tb_get_insn(block, i);
        qemu_plugin_register_vcpu_insn_exec_inline(one, INLINE_ADD_U64, &total, 1);
        if (trace)
            qemu_plugin_register_vcpu_insn_exec_inline(one, INLINE_ADD_U64, counter_of(qemu_plugin_insn_vaddr(one)), 1);
    }
}

/* Before they are sent: whoever reads a byte finds its count. */
static void on_send(uint64_t first, uint64_t bytes)
{
    uint64_t rows = counts[ROWS], cpus = counts[CPUS];
    hand_over(current);
    for (uint64_t i = first; i < first + bytes && i < rows; i++)
        memcpy(&counts[HEADER + i * cpus], own, cpus * sizeof *own);
    while (snapshots_left && *snapshots < first + bytes) {
        snapshot(*snapshots++);
        snapshots_left--;
    }
    __atomic_store_n(&counts[WRITTEN], first + bytes, __ATOMIC_RELEASE);
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    static uint64_t all;
    uint64_t wanted = 0;
    ssize_t sent;
    if (fd != console || !counts)
        return syscall(SYS_sendmsg, fd, message, flags);
    for (size_t i = 0; i < message->msg_iovlen; i++)
        wanted += message->msg_iov[i].iov_len;
    on_send(all, wanted);
    while ((sent = syscall(SYS_sendmsg, fd, message, flags)) < 0 && (errno == EAGAIN || errno == EINTR)) {
        struct pollfd room = {.fd = fd, .events = POLLOUT};
        poll(&room, 1, -1);
    }
    if (sent > 0)
        all += (uint64_t)sent;
    return sent;
}

static int refuse(const char *why)
{
    fprintf(stderr, "labctl's plugin: %s\n", why);
    return 1;
}

EXPORT int qemu_plugin_install(plugin_id id, const machine_info *info, int argc, char **argv)
{
    int counts_fd = -1;
    struct stat found;
    if (!info->system_emulation || info->system.max_vcpus < 1)
        return refuse("not a machine");
    for (int i = 0; i < argc; i++) {
        if (sscanf(argv[i], "console=%d", &console) == 1 || sscanf(argv[i], "counts=%d", &counts_fd) == 1)
            continue;
        int trace_fd;
        if (sscanf(argv[i], "trace=%d", &trace_fd) == 1) {
            if (!(trace = fdopen(trace_fd, "wb")))
                return refuse("no file for the trace");
            setvbuf(trace, NULL, _IOFBF, 1 << 20);
        } else if (!strncmp(argv[i], "at=", 3)) {
            snapshots = must(calloc(strlen(argv[i]), sizeof *snapshots));
            for (char *at = argv[i] + 3; *at; at += *at == ':')
                snapshots[snapshots_left++] = strtoull(at, &at, 10);
        } else {
            return refuse("an argument that it does not know");
        }
    }
    if (counts_fd < 0 || fstat(counts_fd, &found) || (counts_size = (size_t)found.st_size) < HEADER * sizeof *counts)
        return refuse("no memory to count in");
    uint64_t *shared = mmap(NULL, counts_size, PROT_READ | PROT_WRITE, MAP_SHARED, counts_fd, 0);
    if (shared == MAP_FAILED)
        return refuse("no memory to count in");
    own = must(calloc((size_t)info->system.max_vcpus, sizeof *own));
    shared[CPUS] = (uint64_t)info->system.max_vcpus;
    shared[ROWS] = (counts_size / sizeof *counts - HEADER) / shared[CPUS];
    shared[MAGIC] = magic;
    counts = shared;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    return 0;
}

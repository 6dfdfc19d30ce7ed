/* density-kvm: each VM is a process with a virtual machine monitor of its own, the smallest that carries the tiny guest: one CPU, its local APIC
 * and the two interrupt controllers of a PC in the kernel, memory, and of a serial port what is said on it. The guest's timer is the kernel's
 * emulation of its local APIC: this program does not wake it.
 */
#define _GNU_SOURCE
#include "density.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define START_INFO 0x6000 /* below the program; as PVH's start_info.h lays them out */
#define MEMORY_MAP 0x6100
#define COMMAND_LINE 0x7000
#define COM1 0x3f8

struct start_info {
	uint32_t magic, version, flags, modules;
	uint64_t module_list, command_line, rsdp, memory_map;
	uint32_t memory_entries, reserved;
};
struct memory_entry {
	uint64_t address, size;
	uint32_t type, reserved;
};

static char *image;
static size_t image_size;
static struct {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[128];
} cpuid = {.head.nent = 128};

static int refused(const char *what)
{
	fprintf(stderr, "density-kvm: %s: %s\n", what, strerror(errno));
	return -1;
}

static int prepare(const struct settings *settings)
{
	int file = open(settings->kernel, O_RDONLY | O_CLOEXEC), kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	off_t size = file < 0 ? -1 : lseek(file, 0, SEEK_END);
	if (size < (off_t)sizeof(Elf32_Ehdr))
		return refused(settings->kernel);
	if (kvm < 0 || ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return refused("/dev/kvm");
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0)
		return refused("KVM_GET_SUPPORTED_CPUID");
	image_size = size;
	image = mmap(NULL, image_size, PROT_READ, MAP_PRIVATE, file, 0);
	if (image == MAP_FAILED)
		return refused(settings->kernel);
	const Elf32_Ehdr *head = (const Elf32_Ehdr *)image;
	if (memcmp(head->e_ident, ELFMAG "\1\1", 6) || head->e_machine != EM_386 ||
	    head->e_phoff + (size_t)head->e_phnum * sizeof(Elf32_Phdr) > image_size) {
		fprintf(stderr, "density-kvm: %s is no 32-bit ELF file for x86\n", settings->kernel);
		return -1;
	}
	close(kvm);
	close(file);
	return 0;
}

static int load(char *memory, size_t size, const char *command_line)
{
	const Elf32_Ehdr *head = (const Elf32_Ehdr *)image;
	const Elf32_Phdr *part = (const Elf32_Phdr *)(image + head->e_phoff);
	for (int n = 0; n < head->e_phnum; n++) {
		if (part[n].p_type != PT_LOAD)
			continue;
		if (part[n].p_offset + (size_t)part[n].p_filesz > image_size || part[n].p_paddr + (size_t)part[n].p_memsz > size ||
		    part[n].p_filesz > part[n].p_memsz) {
			errno = ENOMEM;
			return -1;
		}
		memcpy(memory + part[n].p_paddr, image + part[n].p_offset, part[n].p_filesz);
	}
	*(struct start_info *)(memory + START_INFO) = (struct start_info){
	    .magic = 0x336ec578, .version = 1, .command_line = COMMAND_LINE, .memory_map = MEMORY_MAP, .memory_entries = 1};
	*(struct memory_entry *)(memory + MEMORY_MAP) = (struct memory_entry){.size = size, .type = 1};
	strncpy(memory + COMMAND_LINE, command_line, 1023);
	return 0;
}

#define TRY(call)                                                                                                                                  \
	if ((call) < 0)                                                                                                                            \
	return failed(vm, #call)

static int monitor(struct vm *vm, size_t size, const char *command_line)
{
	int kvm, machine, cpu, length;
	TRY(kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC));
	TRY(machine = ioctl(kvm, KVM_CREATE_VM, 0));
	TRY(ioctl(machine, KVM_CREATE_IRQCHIP, 0));
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return failed(vm, "its memory");
	madvise(memory, size, MADV_NOHUGEPAGE);
	if (load(memory, size, command_line))
		return failed(vm, "the kernel does not fit");
	struct kvm_userspace_memory_region region = {.memory_size = size, .userspace_addr = (uintptr_t)memory};
	TRY(ioctl(machine, KVM_SET_USER_MEMORY_REGION, &region));
	TRY(cpu = ioctl(machine, KVM_CREATE_VCPU, 0));
	TRY(ioctl(cpu, KVM_SET_CPUID2, &cpuid));
	TRY(length = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	struct kvm_run *run = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
	if (run == MAP_FAILED)
		return failed(vm, "the state of its CPU");

	struct kvm_sregs special;
	TRY(ioctl(cpu, KVM_GET_SREGS, &special));
	struct kvm_segment flat = {.limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
	special.ds = special.es = special.fs = special.gs = special.ss = flat;
	flat.selector = 8, flat.type = 11;
	special.cs = flat;
	special.tr = (struct kvm_segment){.limit = 0x67, .type = 11, .present = 1};
	special.cr0 = 0x11; /* protected mode, no paging */
	TRY(ioctl(cpu, KVM_SET_SREGS, &special));
	struct kvm_regs general = {.rip = ((const Elf32_Ehdr *)image)->e_entry, .rbx = START_INFO, .rflags = 2};
	for (int n = 0, found = 0; n < ((const Elf32_Ehdr *)image)->e_phnum && !found; n++) {
		/* the note says where PVH begins: 18, XEN_ELFNOTE_PHYS32_ENTRY */
		const Elf32_Phdr *part = (const Elf32_Phdr *)(image + ((const Elf32_Ehdr *)image)->e_phoff) + n;
		const uint32_t *note = (const uint32_t *)(image + part->p_offset);
		if (part->p_type == PT_NOTE && part->p_offset + 20u <= image_size && note[2] == 18)
			general.rip = note[4], found = 1;
	}
	TRY(ioctl(cpu, KVM_SET_REGS, &general));
	for (;;) {
		if (ioctl(cpu, KVM_RUN, 0) < 0) {
			if (errno == EINTR)
				continue;
			return failed(vm, "KVM_RUN");
		}
		char *data = (char *)run + run->io.data_offset;
		if (run->exit_reason != KVM_EXIT_IO) {
			snprintf(vm->why, sizeof vm->why, "its CPU stopped with KVM's exit reason %u", run->exit_reason);
			return -1;
		}
		if (run->io.direction == KVM_EXIT_IO_IN) /* the serial port's transmitter is always ready; nothing else is there */
			memset(data, run->io.port == COM1 + 5 ? 0x60 : 0xff, run->io.size * run->io.count);
		else if (run->io.port == COM1)
			heard(vm, data, run->io.size * run->io.count);
	}
}

static int start(struct vm *vm, const struct settings *settings, const char *command_line)
{
	pid_t runner_process = getpid(), process = fork();
	if (process < 0)
		return failed(vm, "fork");
	if (process) {
		vm->process = process;
		return 0;
	}
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != runner_process)
		_exit(1);
	int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (score < 0 || write(score, "1000", 4) < 0)
		failed(vm, "oom_score_adj");
	else
		monitor(vm, (size_t)settings->memory_mib << 20, command_line);
	_exit(1);
}

const struct runner runner = {.name = "kvm", .prepare = prepare, .start = start, .stop = kill_process, .available = memory_available};

/* xendom: what Xen's xl has no verb for: a domain's memory and the time that it has used, and its end as a fault or as a suspended machine.
 *
 *   xendom memory DOMID BYTES    that much of its memory from address 0 on, to standard output; a page that is not there is all zeros
 *   xendom usage DOMID           `cpu_ns=NS pages=N`: CPU time since it was made, and pages of 4 KiB that are its own
 *   xendom crash DOMID           it ends at once, as one whose guest has crashed
 *   xendom suspend DOMID         it stops at once, as one whose guest has let itself be suspended
 *
 * Interfaces: Linux's include/uapi/xen/privcmd.h, Xen's public/domctl.h (4.14 to 4.19: getdomaininfo begins alike) and public/sched.h.
 *
 * Exit status: 0; 1 the hypervisor or the kernel refuses; 2 called wrongly.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define AT_ONCE 256 /* pages mapped together */

struct privcmd_hypercall {
	uint64_t op, arg[5];
};
struct privcmd_mmapbatch_v2 {
	unsigned int num;
	uint16_t dom;
	uint64_t addr;
	const uint64_t *arr;
	int *err;
};
#define IOCTL_PRIVCMD_HYPERCALL _IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))
#define IOCTL_PRIVCMD_MMAPBATCH_V2 _IOC(_IOC_NONE, 'P', 4, sizeof(struct privcmd_mmapbatch_v2))

#define HYPERVISOR_SCHED_OP 29
#define SCHEDOP_REMOTE_SHUTDOWN 4
enum { SHUTDOWN_SUSPEND = 2, SHUTDOWN_CRASH = 3 };
struct remote_shutdown {
	uint16_t domain;
	uint32_t reason;
};

#define HYPERVISOR_DOMCTL 36
#define DOMCTL_GETDOMAININFO 5
struct domctl {
	uint32_t command, interface;
	uint16_t domain, pad[3];
	struct {
		uint16_t domain, pad;
		uint32_t flags;
		uint64_t total_pages, most_pages, outstanding_pages, shared_pages, paged_pages, shared_info, cpu_ns;
		char rest[256];
	} info;
};

static int privcmd;

static int failed(int status, const char *what)
{
	fprintf(stderr, "xendom: %s\n", what);
	return status;
}

/* The argument lies in memory that the kernel promises not to move. Negative: minus the error. */
static int hypercall(uint64_t op, uint64_t first, uint64_t second)
{
	struct privcmd_hypercall call = {.op = op, .arg = {first, second}};
	int result = ioctl(privcmd, IOCTL_PRIVCMD_HYPERCALL, &call);
	return result < 0 ? -errno : result;
}

static void *argument(void)
{
	int fd = open("/dev/xen/hypercall", O_RDWR | O_CLOEXEC);
	void *memory = fd < 0 ? MAP_FAILED : mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return memory == MAP_FAILED ? NULL : memory;
}

static int memory(uint16_t domain, uint64_t bytes)
{
	static const char zeros[PAGE];
	uint64_t pages = (bytes + PAGE - 1) / PAGE, frames[AT_ONCE];
	int errors[AT_ONCE];
	for (uint64_t from = 0; from < pages; from += AT_ONCE) {
		unsigned count = pages - from < AT_ONCE ? pages - from : AT_ONCE;
		char *mapped = mmap(NULL, count * PAGE, PROT_READ, MAP_SHARED, privcmd, 0);
		if (mapped == MAP_FAILED)
			return failed(1, strerror(errno));
		for (unsigned n = 0; n < count; n++)
			frames[n] = from + n;
		struct privcmd_mmapbatch_v2 batch = {.num = count, .dom = domain, .addr = (uintptr_t)mapped, .arr = frames, .err = errors};
		memset(errors, 0, sizeof errors);
		/* ENOENT: some are paged out, which `err` tells too. */
		if (ioctl(privcmd, IOCTL_PRIVCMD_MMAPBATCH_V2, &batch) && errno != ENOENT)
			return failed(1, strerror(errno));
		unsigned there = 0;
		for (unsigned n = 0; n < count; n++) {
			there += !errors[n];
			if (fwrite(errors[n] ? zeros : mapped + (size_t)n * PAGE, PAGE, 1, stdout) != 1)
				return failed(1, strerror(errno));
		}
		if (!there && !from)
			return failed(1, "it has no memory");
		munmap(mapped, count * PAGE);
	}
	return fflush(stdout) ? failed(1, strerror(errno)) : 0;
}

static int usage(uint16_t domain)
{
	struct domctl *asked = argument();
	int result = -EACCES;
	if (!asked)
		return failed(1, strerror(errno));
	for (uint32_t interface = 0x12; interface <= 0x17 && result == -EACCES; interface++) {
		*asked = (struct domctl){.command = DOMCTL_GETDOMAININFO, .interface = interface, .domain = domain};
		result = hypercall(HYPERVISOR_DOMCTL, (uintptr_t)asked, 0);
	}
	if (result)
		return failed(1, result == -EACCES ? "this Xen's interface is not known" : strerror(-result));
	if (asked->info.domain != domain)
		return failed(1, "there is no such domain");
	printf("cpu_ns=%llu pages=%llu\n", (unsigned long long)asked->info.cpu_ns, (unsigned long long)asked->info.total_pages);
	return 0;
}

static int shut(uint16_t domain, uint32_t reason)
{
	struct remote_shutdown *asked = argument();
	if (!asked)
		return failed(1, strerror(errno));
	*asked = (struct remote_shutdown){domain, reason};
	int result = hypercall(HYPERVISOR_SCHED_OP, SCHEDOP_REMOTE_SHUTDOWN, (uintptr_t)asked);
	return result ? failed(1, strerror(-result)) : 0;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 2 ? argv[1] : "";
	long domain = argc > 2 ? strtol(argv[2], NULL, 10) : 0;
	if (domain < 1 || domain >= 0x7ff0)
		return failed(2, "memory DOMID BYTES | usage DOMID | crash DOMID | suspend DOMID");
	privcmd = open("/dev/xen/privcmd", O_RDWR | O_CLOEXEC);
	if (privcmd < 0)
		return failed(1, strerror(errno));
	if (!strcmp(verb, "memory") && argc == 4)
		return memory(domain, strtoull(argv[3], NULL, 10));
	if (!strcmp(verb, "usage") && argc == 3)
		return usage(domain);
	if (!strcmp(verb, "crash") && argc == 3)
		return shut(domain, SHUTDOWN_CRASH);
	if (!strcmp(verb, "suspend") && argc == 3)
		return shut(domain, SHUTDOWN_SUSPEND);
	return failed(2, "what is that?");
}

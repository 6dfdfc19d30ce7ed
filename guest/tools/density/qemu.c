/* density-qemu: each VM is a QEMU of its own, as a microVM with the smallest firmware; what it says on its serial port is read by the runner. */
#define _GNU_SOURCE
#include "density.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define QEMU "/usr/bin/qemu-system-x86_64"
#define ERRORS "/tmp/density-qemu.errors"

static int prepare(const struct settings *settings)
{
	if (access(QEMU, X_OK) || access(settings->kernel, R_OK) || access("/dev/kvm", R_OK | W_OK)) {
		fprintf(stderr, "density-qemu: it takes %s, %s and /dev/kvm\n", QEMU, settings->kernel);
		return -1;
	}
	return 0;
}

static void become_qemu(struct vm *vm, const struct settings *settings, const char *command_line, int console)
{
	char memory[16];
	snprintf(memory, sizeof memory, "%d", settings->memory_mib);
	int errors = open(ERRORS, O_WRONLY | O_CREAT | O_TRUNC, 0600), score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (errors < 0 || score < 0 || write(score, "1000", 4) < 0 || dup2(console, 0) < 0 || dup2(console, 1) < 0 || dup2(errors, 2) < 0) {
		failed(vm, "its files");
		return;
	}
	/* qboot starts a PVH kernel by itself; without its clock (rtc) it waits for seconds. The timer chip (pit) would interrupt the host 18 times
	 * a second for nobody: 20 idle VMs took half of two emulated CPUs by that. */
	execl(QEMU, QEMU, "-M", "microvm,x-option-roms=off,isa-serial=on,rtc=on,pit=off", "-bios", "qboot.rom", "-accel", "kvm", "-cpu", "host", "-m", memory, "-nodefaults",
	      "-no-user-config", "-display", "none", "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-kernel",
	      settings->kernel, "-append", command_line, NULL);
	failed(vm, QEMU);
}

static int start(struct vm *vm, const struct settings *settings, const char *command_line)
{
	int ends[2];
	pid_t runner_process = getpid();
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
		return failed(vm, "socketpair");
	pid_t process = fork();
	if (process == 0) {
		if (!prctl(PR_SET_PDEATHSIG, SIGKILL) && getppid() == runner_process)
			become_qemu(vm, settings, command_line, ends[1]);
		_exit(1);
	}
	close(ends[1]);
	if (process < 0) {
		close(ends[0]);
		return failed(vm, "fork");
	}
	vm->process = process;
	vm->console = ends[0];
	return 0;
}

/* Of a QEMU that has ended: what it said last of why. */
static void explain(struct vm *vm)
{
	char said[400] = "", *line = said;
	int errors = open(ERRORS, O_RDONLY | O_CLOEXEC);
	ssize_t length = errors < 0 ? 0 : read(errors, said, sizeof said - 1);
	if (errors >= 0)
		close(errors);
	if (length <= 0)
		return;
	said[strcspn(said, "\n")] = 0;
	if (!strncmp(line, QEMU ": ", sizeof QEMU + 1))
		line += sizeof QEMU + 1;
	snprintf(vm->why, sizeof vm->why, "QEMU: %.100s", line);
}

static void stop(struct vm *vm)
{
	kill_process(vm);
	if (vm->console >= 0)
		close(vm->console);
	vm->console = -1;
}

const struct runner runner = {
    .name = "qemu", .prepare = prepare, .start = start, .stop = stop, .explain = explain, .available = memory_available};

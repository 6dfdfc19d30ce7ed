/* density-xen: each VM is a guest of Xen (PVH), made by xl as its users do. It says what it says on Xen's console for it, a terminal of
 * xenconsoled's, which the runner reads.
 */
#define _GNU_SOURCE
#include "density.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define STORE "/run/xenstored/socket"
#define ERRORS "/tmp/density-xen.errors"
#define CONSOLE_S 5.0

static int store = -1;

/* A value of the store, or the names below a path; its length, -1 where there is none (xen/include/public/io/xs_wire.h). */
static int asked(uint32_t type, const char *path, char *answer, size_t room)
{
	struct {
		uint32_t type, request, transaction, length;
	} head = {.type = type, .length = strlen(path) + 1};
	size_t taken = 0;
	ssize_t length;
	if (write(store, &head, sizeof head) != sizeof head || write(store, path, head.length) != head.length)
		return -1;
	while (taken < sizeof head) {
		if ((length = read(store, (char *)&head + taken, sizeof head - taken)) <= 0)
			return -1;
		taken += length;
	}
	for (taken = 0; taken < head.length; taken += length)
		if (head.length >= room || (length = read(store, answer + taken, head.length - taken)) <= 0)
			return -1;
	answer[taken] = 0;
	return head.type == type ? (int)taken : -1;
}
#define DIRECTORY 1
#define READ 2

/* Runs xl to its end, its words behind `output` if that is given; its exit status. */
static int xl(char *output, size_t room, char *const *words)
{
	int ends[2] = {-1, -1}, status;
	size_t taken = 0;
	ssize_t length;
	if (output && pipe2(ends, O_CLOEXEC))
		return -1;
	pid_t process = fork();
	if (process == 0) {
		int nothing = open("/dev/null", O_RDWR), errors = open(ERRORS, O_WRONLY | O_CREAT | O_TRUNC, 0600);
		dup2(nothing, 0);
		dup2(output ? ends[1] : nothing, 1);
		dup2(errors, 2);
		execv("/usr/bin/xl", words);
		_exit(127);
	}
	if (output) {
		close(ends[1]);
		while (process > 0 && taken < room - 1 && (length = read(ends[0], output + taken, room - 1 - taken)) > 0)
			taken += length;
		output[taken] = 0;
		close(ends[0]);
	}
	for (pid_t ended = 0; process > 0 && ended != process;) {
		if ((ended = waitpid(process, &status, WNOHANG)) == 0)
			attend(0.01); /* the others beat meanwhile */
		else if (ended < 0 && errno != EINTR)
			return -1;
	}
	return process > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Of a runner that was killed: Xen keeps its VMs. */
static void destroy_all_before(void)
{
	static char said[1 << 16];
	char *list[] = {"xl", "list", NULL}, *rest = said, *line;
	if (xl(said, sizeof said, list))
		return;
	while ((line = strsep(&rest, "\n")))
		if (!strncmp(line, "density-", 8)) {
			line[strcspn(line, " ")] = 0;
			char *destroy[] = {"xl", "destroy", line, NULL};
			xl(NULL, 0, destroy);
		}
}

static int prepare(const struct settings *settings)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = STORE};
	(void)settings;
	store = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (store < 0 || connect(store, (struct sockaddr *)&address, sizeof address)) {
		fprintf(stderr, "density-xen: %s: %s\n", STORE, strerror(errno));
		return -1;
	}
	destroy_all_before();
	return 0;
}

static int newest_domain(void)
{
	static char names[65536];
	int newest = 0, length = asked(DIRECTORY, "/local/domain", names, sizeof names);
	for (int at = 0; at < length; at += strlen(names + at) + 1)
		if (atoi(names + at) > newest)
			newest = atoi(names + at);
	return newest;
}

static int open_console(struct vm *vm, int domain)
{
	char path[64], terminal[128];
	struct termios raw;
	snprintf(path, sizeof path, "/local/domain/%d/console/tty", domain);
	for (double until = now() + CONSOLE_S; asked(READ, path, terminal, sizeof terminal) <= 0;) {
		if (now() > until) {
			snprintf(vm->why, sizeof vm->why, "no console in Xen's store");
			return -1;
		}
		usleep(2000);
	}
	vm->console = open(terminal, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (vm->console < 0 || tcgetattr(vm->console, &raw))
		return failed(vm, terminal);
	cfmakeraw(&raw);
	return tcsetattr(vm->console, TCSANOW, &raw) ? failed(vm, terminal) : 0;
}

static int start(struct vm *vm, const struct settings *settings, const char *command_line)
{
	char name[40], kernel[300], memory[40], words[400], said[400] = "";
	snprintf(name, sizeof name, "name=\"density-%d\"", vm->number);
	snprintf(kernel, sizeof kernel, "kernel=\"%s\"", settings->kernel);
	snprintf(memory, sizeof memory, "memory=%d", settings->memory_mib);
	snprintf(words, sizeof words, "cmdline=\"%s\"", command_line);
	/* What xl reckons for its page tables, some KiB for a guest so small, Xen does not take. */
	char *create[] = {"xl", "create", "-q", "/dev/null", "type=\"pvh\"", name, kernel,
			  memory, words, "shadow_memory=1", "on_crash=\"destroy\"", NULL};
	int status = xl(NULL, 0, create);
	if (status) {
		int errors = open(ERRORS, O_RDONLY | O_CLOEXEC);
		if (errors < 0 || read(errors, said, sizeof said - 1) < 0)
			strcpy(said, "nothing");
		if (errors >= 0)
			close(errors);
		said[strcspn(said, "\n")] = 0;
		snprintf(vm->why, sizeof vm->why, "xl create: status %d: %s", status, said);
		return -1;
	}
	int domain = newest_domain();
	if (domain <= 0) {
		snprintf(vm->why, sizeof vm->why, "Xen's store does not know it");
		return -1;
	}
	return open_console(vm, domain);
}

static void stop(struct vm *vm)
{
	char name[40];
	if (vm->console >= 0)
		close(vm->console);
	vm->console = -1;
	snprintf(name, sizeof name, "density-%d", vm->number); /* by its name: also one that xl left half made */
	char *destroy[] = {"xl", "destroy", name, NULL};
	xl(NULL, 0, destroy);
}

static double told(const char *text, const char *key)
{
	const char *found = strstr(text, key);
	return found && (found = strchr(found, ':')) ? atof(found + 1) : 0;
}

/* What Xen has left. */
static double available(void)
{
	char said[8192], *info[] = {"xl", "info", NULL};
	return xl(said, sizeof said, info) ? 0 : told(said, "\nfree_memory") * 1048576;
}

/* CPU time of all domains so far, in seconds, a CPU of the machine: dom0's own kernel knows of its own only. */
static double busy(void)
{
	static char said[1 << 20];
	static double cpus;
	double sum = 0;
	char *info[] = {"xl", "info", NULL}, *list[] = {"xl", "list", NULL};
	if (!cpus && !xl(said, sizeof said, info))
		cpus = told(said, "\nnr_cpus");
	if (xl(said, sizeof said, list) || !cpus)
		return 0;
	for (char *line = strchr(said, '\n'), *end; line && line[1]; line = end) {
		end = strchr(++line, '\n');
		for (char *at = end ? end - 1 : line; at > line; at--)
			if (*at == ' ') {
				sum += atof(at);
				break;
			}
	}
	return sum / cpus;
}

const struct runner runner = {.name = "xen", .prepare = prepare, .start = start, .stop = stop, .available = available, .dear = 1, .busy = busy};

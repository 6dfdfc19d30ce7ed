/* clipboard: the clipboard of a desktop without a desktop: what a user of the VM's display copies comes here, and is answered.
 *
 *   clipboard SECONDS
 *
 * It speaks to the display's server as spice-vdagent does, over the virtio-serial port com.redhat.spice.0 (spice-protocol's vd_agent.h;
 * QEMU's chardev qemu-vdagent with clipboard=on), and stays so long. Each text that a user copies is told as a line, and then offered back to
 * the users with "guest: " before it:
 *
 *   clipboard: ready
 *   clipboard: got HEX        the text's bytes, UTF-8
 *   clipboard: gave BYTES     a user has asked for what was offered
 *
 * Exit status: 0 after that time, 1 without such a port, or if the other end says what it must not, 2 called wrongly.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PORT "com.redhat.spice.0"
#define MOST (1 << 20)
#define CLIENT_PORT 1
#define PROTOCOL 1
#define TEXT 1
#define BY_DEMAND (1 << 5)
enum { CLIPBOARD = 4, CAPABILITIES = 6, GRAB = 7, REQUEST = 8 };

struct chunk {
	uint32_t port, size;
} __attribute__((packed));
struct message {
	uint32_t protocol, type;
	uint64_t opaque;
	uint32_t size;
} __attribute__((packed));

static int port;
static char held[MOST + 16] = "guest: ";
static uint32_t held_size;
static unsigned char received[MOST + sizeof(struct message)];
static size_t there; /* of a message that may come in several chunks */

static int wrong(const char *what)
{
	fprintf(stderr, "clipboard: %s\n", what);
	return 1;
}

static int find_port(char *path, size_t size)
{
	DIR *folder = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	int found = 0;
	while (folder && !found && (entry = readdir(folder))) {
		char file[512], name[64] = "";
		snprintf(file, sizeof file, "/sys/class/virtio-ports/%s/name", entry->d_name);
		FILE *told = fopen(file, "r");
		if (!told)
			continue;
		if (fgets(name, sizeof name, told) && !strncmp(name, PORT "\n", sizeof PORT)) {
			snprintf(path, size, "/dev/%s", entry->d_name);
			found = 1;
		}
		fclose(told);
	}
	if (folder)
		closedir(folder);
	return found;
}

static int put(const void *data, size_t size)
{
	for (const char *at = data; size;) {
		ssize_t done = write(port, at, size);
		if (done < 0 && errno != EINTR && errno != EAGAIN)
			return -1;
		if (done > 0)
			at += done, size -= done;
	}
	return 0;
}

static int say(uint32_t type, const void *first, uint32_t first_size, const void *second, uint32_t second_size)
{
	struct message message = {PROTOCOL, type, 0, first_size + second_size};
	struct chunk chunk = {CLIENT_PORT, sizeof message + message.size};
	return put(&chunk, sizeof chunk) || put(&message, sizeof message) || put(first, first_size) || put(second, second_size);
}

static int tell_capabilities(uint32_t request)
{
	uint32_t words[2] = {request, BY_DEMAND};
	return say(CAPABILITIES, words, sizeof words, 0, 0);
}

static int heard(const struct message *message, const unsigned char *data)
{
	static const uint32_t text = TEXT;
	uint32_t first = 0;
	if (message->size >= sizeof first)
		memcpy(&first, data, sizeof first);
	if (message->type == CAPABILITIES)
		return first ? tell_capabilities(0) : 0;
	if (message->type == GRAB) {
		for (uint32_t at = 0; at + 4 <= message->size; at += 4) {
			memcpy(&first, data + at, sizeof first);
			if (first == TEXT)
				return say(REQUEST, &text, sizeof text, 0, 0);
		}
		return 0;
	}
	if (message->type == REQUEST && first == TEXT && held_size) {
		printf("clipboard: gave %u\n", held_size);
		return say(CLIPBOARD, &text, sizeof text, held, held_size);
	}
	if (message->type == CLIPBOARD && first == TEXT && message->size > sizeof first) {
		uint32_t size = strnlen((const char *)data + sizeof first, message->size - sizeof first);
		printf("clipboard: got ");
		for (uint32_t at = 0; at < size; at++)
			printf("%02x", data[sizeof first + at]);
		printf("\n");
		memcpy(held + 7, data + sizeof first, size);
		held_size = 7 + size;
		return say(GRAB, &text, sizeof text, 0, 0);
	}
	return 0;
}

/* Exactly so many bytes; -1 for the end, or when the time is over. */
static int take(void *into, size_t size, const struct timespec *until)
{
	for (char *at = into; size;) {
		struct timespec now;
		clock_gettime(CLOCK_MONOTONIC, &now);
		long left = (until->tv_sec - now.tv_sec) * 1000 + (until->tv_nsec - now.tv_nsec) / 1000000;
		struct pollfd ready = {port, POLLIN, 0};
		if (left <= 0 || poll(&ready, 1, left) == 0)
			return -1;
		ssize_t done = read(port, at, size);
		if (done < 0 && errno != EINTR && errno != EAGAIN)
			return -1;
		if (done == 0)
			usleep(10000); /* nobody is at the other end yet */
		if (done > 0)
			at += done, size -= done;
	}
	return 0;
}

int main(int argc, char **argv)
{
	char path[300];
	double seconds = argc == 2 ? atof(argv[1]) : 0;
	struct timespec until;
	if (seconds <= 0 || seconds > 86400) {
		fprintf(stderr, "usage: clipboard SECONDS\n");
		return 2;
	}
	if (!find_port(path, sizeof path))
		return wrong("the machine has no port " PORT);
	if ((port = open(path, O_RDWR)) < 0)
		return wrong(strerror(errno));
	setvbuf(stdout, 0, _IOLBF, 0);
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)seconds;
	if (tell_capabilities(1))
		return wrong(strerror(errno));
	printf("clipboard: ready\n");
	for (;;) {
		struct chunk chunk;
		struct message message;
		if (take(&chunk, sizeof chunk, &until))
			return 0;
		if (chunk.size > sizeof received - there)
			return wrong("a message that is larger than is taken");
		if (take(received + there, chunk.size, &until))
			return 0;
		there += chunk.size;
		if (there < sizeof message)
			continue;
		memcpy(&message, received, sizeof message);
		if (message.protocol != PROTOCOL || message.size > MOST)
			return wrong("no message of an agent");
		if (there < sizeof message + message.size)
			continue;
		if (heard(&message, received + sizeof message))
			return wrong(strerror(errno));
		there = 0;
	}
}

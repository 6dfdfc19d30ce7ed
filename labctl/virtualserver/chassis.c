/* What the BMC's simulator calls to switch the machine: chassis SOCKET get power. The same as chassis.py, which takes Python's start each time.
 * Passes its words on to the keeper and prints its answer: "STATUS TEXT". A BMC asks for the power a dozen times a boot.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE 60 /* seconds */

int main(int argc, char **argv)
{
	struct sockaddr_un keeper = { .sun_family = AF_UNIX };
	struct timeval patience = { PATIENCE, 0 };
	char words[4096] = "chassis", answer[4096], *text;
	size_t said = strlen(words), heard = 0;
	if (argc < 2 || strlen(argv[1]) >= sizeof keeper.sun_path)
		return 1;
	strcpy(keeper.sun_path, argv[1]);
	for (int i = 2; i < argc; i++) {
		size_t length = strlen(argv[i]);
		if (said + length + 2 >= sizeof words)
			return 1;
		words[said++] = ' ';
		memcpy(words + said, argv[i], length);
		said += length;
	}
	words[said++] = '\n';
	int line = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (line < 0 || setsockopt(line, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience)
	    || connect(line, (struct sockaddr *)&keeper, sizeof keeper) || send(line, words, said, MSG_NOSIGNAL) != (ssize_t)said)
		return 1;
	while (!heard || answer[heard - 1] != '\n') {
		ssize_t more = heard + 1 < sizeof answer ? read(line, answer + heard, sizeof answer - 1 - heard) : 0;
		if (more <= 0)
			return 1;
		heard += (size_t)more;
	}
	answer[heard] = 0;
	int status = (int)strtol(answer, &text, 10);
	if (text == answer)
		return 1;
	if (*text == ' ' && text[1] != '\n')
		fputs(text + 1, stdout);
	return status;
}

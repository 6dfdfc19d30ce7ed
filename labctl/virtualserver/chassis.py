"""What the BMC's simulator calls to switch the machine: ``python -I -S chassis.py SOCKET get power``.

Where there is gcc, chassis.c does the same without Python's start. This is on the path of every power command too, so it loads nothing but
C modules: passes its words on to the keeper, prints its answer.
"""

import _socket
import sys


def main() -> int:
    keeper = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    keeper.settimeout(60)
    keeper.connect(sys.argv[1])
    keeper.send(("chassis " + " ".join(sys.argv[2:]) + "\n").encode())
    answer = b""
    while not answer.endswith(b"\n"):
        more = keeper.recv(4096)
        if not more:
            return 1
        answer += more
    status, _, text = answer.decode().strip().partition(" ")
    if text:
        print(text)  # noqa: T201  # the simulator reads it
    return int(status)


if __name__ == "__main__":
    sys.exit(main())

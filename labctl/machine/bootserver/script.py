"""The script that iPXE runs. Its addresses name no server, so that it works through any relay and by any name of the server."""

from __future__ import annotations

from collections.abc import Iterable

from labctl.machine.bootserver.loader import BY_BIOS, BY_UEFI
from labctl.machine.bootserver.seal import Seal

PARTS = ("kernel", "cmdline", "initrd")

_SCRIPT = """#!ipxe
echo labctl: fetching
set loader {by_bios}
iseq ${{platform}} efi && set loader {by_uefi} ||
kernel /offer/{token}/${{loader}} {words} || goto failed
{modules}
boot || goto failed
:failed
echo labctl: it cannot be fetched or booted: ${{errno}}
sleep 2
exit 1
"""


def boot_script(token: str, files: Iterable[str], seal: Seal) -> str:
    """For what ``files`` has of `PARTS`, each with its tag in ``seal``: the loader checks them."""
    return _SCRIPT.format(
        by_bios=BY_BIOS,
        by_uefi=BY_UEFI,
        token=token,
        words=seal.words(),
        modules="\n".join(f"module /offer/{token}/{part} || goto failed" for part in PARTS if part in files),
    )

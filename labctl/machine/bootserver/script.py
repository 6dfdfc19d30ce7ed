"""The script that iPXE runs. Its addresses name no server, so that it works through any relay and by any name of the server."""

from __future__ import annotations

import re
from collections.abc import Mapping

from labctl.errors import DeployError
from labctl.machine.bootserver.offer import File
from labctl.machine.bootserver.seal import Seal

PARTS = ("kernel", "cmdline", "initrd")
_SPOILT_BY_IPXE = re.compile(r"\$\{|(?:^|\s)(?:\|\||&&|;|#)|[\n\r\t]|  ")

_SCRIPT = """#!ipxe
echo labctl: fetching
iseq ${{platform}} efi && goto efi ||
kernel /offer/{token}/loader key={key} {tags} || goto failed
{modules}
boot || goto failed
:efi
{efi}
boot || goto failed
:failed
echo labctl: it cannot be fetched or booted: ${{errno}}
sleep 2
exit 1
"""


def boot_script(token: str, files: Mapping[str, File], append: str, seal: Seal) -> str:
    """For what ``files`` has of `PARTS`, each with its tag in ``seal``. On a PC with a BIOS the loader checks them; UEFI boots the kernel
    itself, unchecked.

    DeployError for a command line that iPXE would spoil on UEFI: kernels there get it through iPXE's own words.
    """
    parts = [part for part in PARTS if part in files]
    efi = [f"kernel /offer/{token}/kernel initrd=initrd {append} || goto failed"]
    if "initrd" in files:
        efi.append(f"initrd /offer/{token}/initrd || goto failed")
    if _SPOILT_BY_IPXE.search(append):
        efi = ["echo labctl: iPXE cannot pass on this command line", "goto failed"]
    text = _SCRIPT.format(
        token=token,
        key=seal.key.hex(),
        tags=" ".join(f"{part}={seal.tags[part]}" for part in parts),
        modules="\n".join(f"module /offer/{token}/{part} || goto failed" for part in parts),
        efi="\n".join(efi),
    )
    if len(text) > 60_000:
        raise DeployError("the command line is too long for a boot script")
    return text

"""A Debian archive of our own, over HTTP, and an apt that knows no other: packages come, go, change and break as in Debian's."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.kernels import bzimage

CONFIG = 'CONFIG_64BIT=y\nCONFIG_CC_VERSION_TEXT="gcc-12 (Debian) 12.2.0"\n'


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Archive:
    """A Debian archive in a folder, served over HTTP, and an apt that knows no other."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool = root / "archive"
        self.apt = root / "apt"
        self.pool.mkdir()
        for folder in ("etc/preferences.d", "lists/partial", "cache/archives/partial"):
            (self.apt / folder).mkdir(parents=True)
        (self.apt / "status").touch()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(self.pool)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        port = self.server.server_address[1]
        (self.apt / "etc/sources.list").write_text(f"deb [trusted=yes] http://127.0.0.1:{port} ./\n")
        config = self.apt / "apt.conf"
        config.write_text(
            f'Dir::Etc "{self.apt}/etc/"; Dir::State "{self.apt}"; Dir::State::status "{self.apt}/status";\n'
            f'Dir::State::lists "{self.apt}/lists/";\n'
            f'Dir::Cache "{self.apt}/cache/"; APT::Architecture "amd64"; APT::Architectures {{ "amd64"; }};\n'
            'Acquire::http::Proxy "DIRECT"; Acquire::Languages "none"; APT::Sandbox::User "root"; Acquire::Retries "0";\n'
        )
        monkeypatch.setenv("APT_CONFIG", str(config))
        self.records: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.updates = 0

    def put(self, name: str, version: str, kernel: bytes | None = None, depends: str = "kmod") -> None:
        """Build a package and list it; without ``kernel`` one that holds a kernel of the release that its name says."""
        release = name.removeprefix("linux-image-").removesuffix("-unsigned")
        content = bzimage(release) if kernel is None else kernel
        self.put_files(name, version, {f"boot/vmlinuz-{release}": content, f"boot/config-{release}": CONFIG.encode()}, depends, "kernel")

    def put_files(self, name: str, version: str, files: Mapping[str, bytes | Path], depends: str = "", section: str = "utils") -> None:
        """Build a package with these files, or links where a path is given, and list it."""
        folder = self.pool.parent / "package"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "DEBIAN").mkdir(parents=True)
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                (folder / path).symlink_to(content)
            else:
                (folder / path).write_bytes(content)
        control = f"Package: {name}\nSource: linux-signed ({version})\nVersion: {version}\nArchitecture: amd64\nMaintainer: T <t@test>\n"
        control += f"Section: {section}\n" + (f"Depends: {depends}\n" if depends else "") + "Description: test\n more\n"
        (folder / "DEBIAN/control").write_text(control)
        file = self.pool / f"{name}_{version.replace(':', '')}_amd64.deb"
        subprocess.run(["dpkg-deb", "-Znone", "-b", "--root-owner-group", str(folder), str(file)], check=True, capture_output=True)
        data = file.read_bytes()
        self.records[f"{name} {version}"] = (
            f"{control}Filename: ./{file.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        )

    def put_source(self, name: str, version: str, files: Mapping[str, str]) -> None:
        """A source package of one archive (3.0, native), and its line in the list of sources."""
        tar = self.pool / f"{name}_{version}.tar.gz"
        with tarfile.open(tar, "w:gz") as archive:
            for path, text in {**files, "debian/source/format": "3.0 (native)\n"}.items():
                member = tarfile.TarInfo(f"{name}-{version}/{path}")
                member.size, member.mode = len(text.encode()), 0o755
                archive.addfile(member, io.BytesIO(text.encode()))

        def sums(*paths: Path) -> str:
            lines = "".join(f" {hashlib.sha256(p.read_bytes()).hexdigest()} {p.stat().st_size} {p.name}\n" for p in paths)
            md5 = "".join(f" {hashlib.md5(p.read_bytes()).hexdigest()} {p.stat().st_size} {p.name}\n" for p in paths)
            return f"Checksums-Sha256:\n{lines}Files:\n{md5}"

        about = f"Binary: {name}\nArchitecture: any\nVersion: {version}\nMaintainer: T <t@test>\nStandards-Version: 4.6.1\n"
        dsc = self.pool / f"{name}_{version}.dsc"
        dsc.write_text(f"Format: 3.0 (native)\nSource: {name}\n{about}{sums(tar)}")
        self.sources[f"{name} {version}"] = f"Package: {name}\nFormat: 3.0 (native)\n{about}Directory: .\n{sums(dsc, tar)}"

    def update(self) -> None:
        """What the archive's master and then the user do: list the packages, ``apt-get update``."""
        packages, sources = ("\n".join(each.values()).encode() for each in (self.records, self.sources))
        # A list of the same second as the one before counts as the same list: time goes on by one for each.
        self.updates += 1
        for file, plain in (("Packages", packages), ("Packages.gz", packages), ("Sources", sources), ("Sources.gz", sources)):
            (self.pool / file).write_bytes(gzip.compress(plain) if file.endswith(".gz") else plain)
            os.utime(self.pool / file, (1.7e9 + self.updates,) * 2)
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)

    def remove(self, name: str, version: str, *, listed: bool = False) -> None:
        if not listed:
            del self.records[f"{name} {version}"]
        (self.pool / f"{name}_{version}_amd64.deb").unlink()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

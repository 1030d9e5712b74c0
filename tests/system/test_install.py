# SPDX-License-Identifier: MIT
"""What is installed: the files that the README names, a library that exports its calls and nothing else, an example that
compiles in one line and works with the installed daemon and GPU. And what else the README says to type."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402

TOP = Path(__file__).resolve().parents[2]
UNITS = ("pasidd.service", "pasidd.socket", "pasidd.slice", "pasid-refgpu.service")
DOCS = sorted(path for path in (TOP / "docs").iterdir() if path.is_file())
MAN = re.findall(r"'(\S+\.[1-8])'", (TOP / "docs/man/meson.build").read_text())
CALLS = re.findall(r"'(pasid_\w+)'", (TOP / "docs/man/meson.build").read_text())
# The library may be built with sanitizers; a program that links it is then, too.
SANITIZERS = {"__asan_init": "-fsanitize=address", "__ubsan_handle": "-fsanitize=undefined"}


def output(*argv, **options):
    """What a command prints. Its failure shows all that it said."""
    done = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", check=False, timeout=120, **options)
    if done.returncode:
        raise AssertionError(f"{shlex.join(str(a) for a in argv)}: status {done.returncode}\n{done.stdout}")
    return done.stdout


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.top = Path(tempfile.mkdtemp(prefix="pasidd-install-"))
        cls.addClassCleanup(shutil.rmtree, cls.top, ignore_errors=True)
        build = harness.program("PASID_BUILD")
        cls.root = cls.top / "root"
        output("meson", "install", "-C", build, "--destdir", cls.root, "--no-rebuild")
        options = output("meson", "introspect", "--buildoptions", build)
        cls.options = {o["name"]: o["value"] for o in json.loads(options)}
        cls.prefix = Path(cls.options["prefix"])

    def path(self, directory, *more):
        """A path in the installed tree: directory is one of meson's, "bindir" and so on."""
        return self.root.joinpath(*(self.prefix / self.options[directory]).parts[1:], *more)

    @property
    def programs(self):
        return (self.path("sbindir", "pasidd"), self.path("bindir", "pasidctl"), self.path("bindir", "pasid-refgpu"))

    @property
    def library(self):
        return self.path("libdir", "libpasid.so.0")

    def test_files(self):
        share = self.path("datadir")
        include = self.path("includedir", "pasid")
        for path in (self.path("libdir", "libpasid.so"), self.library, self.path("libdir", "pkgconfig", "libpasid.pc"),
                     include / "pasid.h", include / "protocol.h", include / "edu.h", include / "refgpu.h",
                     include / "driver.h", include / "range.h", include / "trace.h",
                     self.path("mandir", "man8", "pasidd.8"), self.path("mandir", "man1", "pasidctl.1"),
                     self.path("mandir", "man3", "pasid_ctx_new.3"), share / "bash-completion/completions/pasidctl",
                     share / "doc/pasidd/pasidd.json", share / "doc/pasidd/README.md",
                     *(share / "doc/pasidd/docs" / path.name for path in DOCS),
                     share / "doc/libpasid/examples/fill.c"):
            self.assertTrue(path.is_file(), path)
        for path in self.programs:
            self.assertTrue(os.access(path, os.X_OK), path)
        allowed = {"pasidd", "pasidctl", "pasid-refgpu", "libpasid.so", "libpasid.so.0", "libpasid.so.0.1.0",
                   "libpasid.pc", "driver.h", "edu.h", "pasid.h", "protocol.h", "range.h", "refgpu.h", "trace.h", *UNITS,
                   "pasidd.conf", "70-pasidd.rules", "org.pasidd.conf", "org.pasidd.service", "pasidd.json",
                   "README.md", "fill.c", *(path.name for path in DOCS), *MAN, *(f"{call}.3" for call in CALLS)}
        installed = {p.name for p in self.root.rglob("*") if not p.is_dir()}
        self.assertEqual(installed - allowed, set(), "installed, and nobody said so")

    def test_units(self):
        """Where systemd looks for them; what they name is there."""
        units = {path.name: path for path in self.root.rglob("systemd/system/*")}
        self.assertEqual(sorted(units), sorted(UNITS))
        for path in units.values():
            text = path.read_text()
            self.assertNotRegex(text, r"@\w+@")
            for program in re.findall(r"^ExecStart=(\S+)", text, re.M):
                self.assertIn(Path(program), [self.prefix / p.relative_to(self.root / self.prefix.relative_to("/"))
                                              for p in self.programs])
            documents = re.findall(r"^Documentation=.*file:(\S+)", text, re.M)
            self.assertEqual([d for d in documents if not self.root.joinpath(d[1:]).is_file()], [])
            self.assertEqual(len(documents), 1)
        config = re.search(r"^ExecStart=.* --config (\S+)$", units["pasidd.service"].read_text(), re.M).group(1)
        self.assertTrue(self.root.joinpath(config[1:]).is_file(), config)

    def test_first_configuration(self):
        """It has no devices; and one that is there stays when something is installed over it."""
        config = self.path("sysconfdir", "pasidd", "pasidd.json")
        self.assertEqual(json.loads(config.read_text()), {"devices": []})
        build = harness.program("PASID_BUILD")
        config.write_text("{}")
        output("meson", "install", "-C", build, "--destdir", self.root, "--no-rebuild")
        self.assertEqual(config.read_text(), "{}")
        config.unlink()
        output("meson", "install", "-C", build, "--destdir", self.root, "--no-rebuild")

    def test_directories(self):
        """In /usr they are the machine's; each can be chosen; and units are for the systemd that is said."""
        build = self.top / "other"
        chosen = {"systemunitdir": "/a/units", "sysusersdir": "/a/users", "tmpfilesdir": "/a/files", "udevrulesdir": "/a/rules",
                  "dbuspolicydir": "/a/policy", "dbusservicedir": "/a/activation"}
        output("meson", "setup", build, TOP, "--prefix=/usr", "-Dtests=disabled", "-Dsystemd_version=254",
               *(f"-D{name}={path}" for name, path in chosen.items()))
        files = set(json.loads(output("meson", "introspect", "--installed", build)).values())
        self.assertLessEqual({"/a/units/pasidd.service", "/a/units/pasidd.socket", "/a/users/pasidd.conf",
                              "/a/files/pasidd.conf", "/a/rules/70-pasidd.rules", "/a/policy/org.pasidd.conf",
                              "/a/activation/org.pasidd.service"}, files)
        unit = (build / "systemd/pasidd.service").read_text()
        for line in ("Type=notify-reload", "FileDescriptorStorePreserve=yes"):
            self.assertRegex(unit, rf"(?m)^{line}")
        output("meson", "configure", build, "-Dsystemd_version=252", *(f"-D{name}=" for name in chosen))
        output("meson", "setup", "--reconfigure", build, TOP)
        unit = (build / "systemd/pasidd.service").read_text()
        self.assertRegex(unit, r"(?m)^Type=notify$")
        self.assertNotRegex(unit, r"(?m)^FileDescriptorStorePreserve=")
        fds = re.search(r"(?m)^FileDescriptorStoreMax=(\d+)$", unit).group(1)
        self.assertIn(f"\nEnvironment=FDSTORE={fds}\n", unit)
        files = set(json.loads(output("meson", "introspect", "--installed", build)).values())
        where = output("pkg-config", "--variable=systemdsystemunitdir", "systemd").strip()
        self.assertIn(f"{where}/pasidd.service", files)

    def test_programs(self):
        for path in self.programs:
            self.assertRegex(output(path, "--version"), rf"^{path.name} \d+\.\d+\.\d+\n$")
            self.assertRegex(output(path, "--help"), rf"^[Uu]sage: {path.name} ")

    def test_config(self):
        said = output(self.path("sbindir", "pasidd"), "--check-config", self.path("datadir", "doc/pasidd/pasidd.json"))
        self.assertIn("ok", said)
        self.assertEqual(self.path("datadir", "doc/pasidd/pasidd.json").read_bytes(),
                         (TOP / "configs/pasidd.json").read_bytes())

    def test_library(self):
        symbols = [line.split() for line in output("nm", "-D", "--defined-only", self.library).splitlines()]
        names = {s[-1].split("@")[0] for s in symbols if s[-2] != "A"}
        self.assertEqual({n for n in names if not n.startswith("pasid_")}, set())
        declared = re.sub(r"/\*.*?\*/", "", self.path("includedir", "pasid/pasid.h").read_text(), flags=re.S)
        self.assertEqual(names, set(re.findall(r"\b(pasid_\w+)\(", declared)))
        dynamic = output("readelf", "-d", self.library)
        self.assertIn("Library soname: [libpasid.so.0]", dynamic)
        self.assertIn("libpasid.so.0", os.readlink(self.path("libdir", "libpasid.so")))
        needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\]", dynamic))
        self.assertEqual({n for n in needed if not re.match(r"(libc|libasan|libubsan|libclang_rt.*|ld-linux.*)\.", n)},
                         set(), "it needs libc and nothing else")

    @property
    def pkg_config_env(self):
        return dict(os.environ, PKG_CONFIG_SYSROOT_DIR=str(self.root),
                    PKG_CONFIG_LIBDIR=str(self.path("libdir", "pkgconfig")))

    def compile_example(self):
        """As the example itself says, in one line."""
        example = self.path("datadir", "doc/libpasid/examples/fill.c")
        line = re.search(r"^ \*   (cc fill\.c .*)$", example.read_text(), re.M).group(1)
        self.assertIn(line, (TOP / "README.md").read_text())
        symbols = output("nm", "-D", self.library)
        sanitize = [flag for symbol, flag in SANITIZERS.items() if symbol in symbols]
        # With sanitizers the compiler has to be the one that built the library.
        compiler = shlex.split(os.environ.get("PASID_CC", "cc")) if sanitize else ["cc"]
        cc = shlex.join([*compiler, *sanitize, "-Wall", "-Wextra", "-Werror"])
        shutil.copy(example, self.top)
        output("sh", "-c", line.replace("cc ", cc + " ", 1), cwd=self.top, env=self.pkg_config_env)
        return self.top / "fill"

    def test_driver(self):
        """What "pasidctl driver new" writes is built as its README says, and goes where that says; pasidd takes it."""
        source, build = self.top / "spare", self.top / "spare" / "build"
        output(self.path("bindir", "pasidctl"), "driver", "new", "spare", source)
        output("meson", "setup", build, source, f"--prefix={self.prefix}", f"--libdir={self.options['libdir']}",
               "--werror", env=self.pkg_config_env)
        root = self.top / "spare-root"
        output("meson", "install", "-C", build, "--destdir", root)
        drivers = list(root.rglob("*.so"))
        self.assertEqual([d.parts[-3:] for d in drivers], [("pasidd", "drivers", "spare.so")])
        config = self.top / "drivers.json"
        config.write_text(json.dumps({"drivers": [str(drivers[0])]}))
        said = output(self.path("sbindir", "pasidd"), "--check-config", config)
        self.assertEqual(said, f"{config}: ok\n")

    def test_example(self):
        program = self.compile_example()
        variables = {"PASIDD": str(self.path("sbindir", "pasidd")),
                     "PASID_REFGPU": str(self.path("bindir", "pasid-refgpu"))}
        before = {name: os.environ[name] for name in variables}
        os.environ.update(variables)
        self.addCleanup(os.environ.update, before)
        with harness.Stack() as stack:
            with pc.Client(stack.socket) as client:
                stack.await_device(client)
            env = dict(os.environ, PASIDD_SOCKET=stack.socket, LD_LIBRARY_PATH=str(self.library.parent))
            self.assertIn("the GPU wrote 0xc0ffee42 to all", output(program, env=env))
            said = output(program, "fault", env=env)
            self.assertRegex(said, r"(?m)^event: .*0x[0-9a-f]+")
            self.assertIn("the context goes on", said)


class Readme(unittest.TestCase):
    """Its commands exist, with these options."""

    def setUp(self):
        self.text = (TOP / "README.md").read_text()

    def test_scripts(self):
        for script in sorted(set(re.findall(r"\./(\w+\.sh)", self.text))):
            self.assertTrue(os.access(TOP / script, os.X_OK), script)
            usage = output(TOP / script, "--help")
            for option in re.findall(rf"\./{re.escape(script)} (--[a-z-]+)", self.text):
                self.assertIn(option, usage)

    def test_links_and_files(self):
        for target in re.findall(r"\]\(([^)#]+)\)", self.text):
            self.assertTrue((TOP / target).is_file(), target)
        for word in re.findall(r"\b((?:tests|client|configs|include|docs)/[\w./]+\w)", self.text):
            self.assertTrue((TOP / word).exists(), word)

    def test_packages(self):
        """What the README lists is what the scripts install."""
        lines = re.search(r"apt-get install ((?:.*\\\n)*.*)", self.text).group(1).replace("\\\n", " ").split()
        packages = output("bash", "-c", "source tests/lib.sh; echo \"${PACKAGES[@]}\"", cwd=TOP).split()
        self.assertEqual(sorted(lines), sorted(packages))

    def test_meson_options(self):
        options = (TOP / "meson_options.txt").read_text()
        for name in re.findall(r"-D(\w+)=", self.text):
            if name not in ("buildtype", "werror"):
                self.assertIn(f"option('{name}'", options)

    def test_tests_by_name(self):
        build = harness.program("PASID_BUILD")
        known = output("meson", "introspect", "--tests", build)
        for name in re.findall(r"meson test -C build (\w+)", self.text):
            self.assertIn(f"\"name\": \"{name}\"", known)

    def test_configuration_keys(self):
        """Every key of the example is in the table, and the other way round."""
        config = (TOP / "configs/pasidd.json").read_text()
        keys = set(re.findall(r"\"(\w+)\":", config))
        table = "".join(line for line in self.text.splitlines() if line.startswith("| `"))
        named = {part for word in re.findall(r"`([^`]+)`", table) for part in re.findall(r"\w+", word)}
        self.assertEqual(keys - named, set())


if __name__ == "__main__":
    unittest.main()

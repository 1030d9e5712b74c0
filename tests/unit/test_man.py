#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The manual pages: they are well formed, and every option, key and call is in them; and the completion knows what --help says.

    test_man.py SOURCE

The programs are $PASIDD and $PASIDCTL.
"""

import os
import re
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

TOP = Path(sys.argv[1])
PASIDD, PASIDCTL = os.environ["PASIDD"], os.environ["PASIDCTL"]
MAN = TOP / "docs/man"
PAGES = sorted(path for path in MAN.iterdir() if re.fullmatch(r"\.[1-8]", path.suffix))


def output(*argv):
    return subprocess.run([str(a) for a in argv], check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def text(name):
    """A page as it is written, but with two dashes in front of long options."""
    lines = (MAN / name).read_text().splitlines()
    return "\n".join(re.sub(r" -(?=[a-z]{2})", " --", line) if "Fl " in line else line for line in lines) + "\n"


def entry(page, pattern):
    return re.search(pattern, page, re.M) is not None


def verbs():
    return re.findall(r"pasidctl (\w+)", output(PASIDCTL, "--help").split("\n\n")[0])


def complete(*words):
    """What bash offers for the last word."""
    script = f"""source {TOP}/client/pasidctl/completion.bash
        COMP_WORDS=(pasidctl "$@"); COMP_CWORD=$#; _pasidctl; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", script, "bash", *words], check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    return done.stdout.split()


class Pages(unittest.TestCase):
    @unittest.skipUnless(shutil.which("mandoc"), "there is no mandoc")
    def test_well_formed(self):
        for page in PAGES:
            done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], stdout=subprocess.PIPE, text=True,
                                  timeout=60, check=False)
            self.assertEqual((done.returncode, done.stdout), (0, ""), page)

    @unittest.skipUnless(shutil.which("mandoc"), "there is no mandoc")
    def test_references(self):
        ours = {(page.stem, page.suffix[1:]) for page in PAGES}
        for page in PAGES:
            for name, section in re.findall(r"^\.Xr (\S+) (\d)", page.read_text(), re.M):
                if name.startswith(("pasid", "libpasid")):
                    self.assertIn((name, section), ours, page)

    def test_options_of_pasidd(self):
        page, docs = text("pasidd.8"), (TOP / "docs/configuration.md").read_text()
        options = re.findall(r"(--[a-z-]+)", output(PASIDD, "--help"))
        self.assertIn("--config", options)
        for option in options:
            self.assertTrue(entry(page, rf"^\.It .*{option}\b"), option)
            self.assertTrue(option in docs, option)

    def test_verbs_and_options_of_pasidctl(self):
        page, docs = text("pasidctl.1"), (TOP / "docs/pasidctl.md").read_text()
        for verb in verbs():
            self.assertTrue(entry(page, rf"^\.It Cm {verb}\b"), verb)
            self.assertTrue(entry(docs, rf"^## .*\b{verb}\b"), "a section of its own")
        for option in set(re.findall(r"--[a-z-]+", output(PASIDCTL, "--help"))):
            self.assertTrue(entry(page, rf"^\.It .*{option}\b"), option)

    def test_keys(self):
        page = text("pasidd.json.5")
        source = (TOP / "daemon/config/config.c").read_text()
        keys = set(re.findall(r'(?:^\t\{|\bLIMIT\()"(\w+)", ', source, re.M))
        self.assertTrue({"socket", "spec", "jobs", "uids"} <= keys, keys)
        for key in keys:
            self.assertTrue(entry(page, rf"^\.(It Cm|Ss) {key}$"), key)

    def test_calls(self):
        page, build = text("libpasid.3"), (MAN / "meson.build").read_text()
        header = re.sub(r"/\*.*?\*/", "", (TOP / "include/pasid/pasid.h").read_text(), flags=re.S)
        calls = set(re.findall(r"\b(pasid_\w+)\(", header))
        self.assertEqual(set(re.findall(r"(?m)^\.Fo (\w+)$", page)), calls)
        for call in calls:
            self.assertTrue(entry(page, rf"^\.Fn {call}$"), call)
        self.assertEqual(set(re.findall(r"'(pasid_\w+)'", build)), calls)

    def test_prototypes(self):
        """Arguments are those of the header, in its order."""
        header = re.sub(r"/\*.*?\*/", "", (TOP / "include/pasid/pasid.h").read_text(), flags=re.S)
        for call, arguments in re.findall(r"(?m)^\.Fo (\w+)\n((?:\.Fa .*\n)+)\.Fc", text("libpasid.3")):
            declared = re.search(rf"\b{call}\((.*?)\);", header, re.S).group(1)
            self.assertEqual(re.findall(r'\.Fa "(.*)"', arguments), re.sub(r"\s+", " ", declared).split(", "), call)


@unittest.skipUnless(shutil.which("bash"), "there is no bash")
class Completion(unittest.TestCase):
    def test_verbs(self):
        self.assertEqual(sorted(complete("")), sorted(set(verbs())))
        self.assertEqual(complete("wal"), ["walk"])
        self.assertEqual(complete("--json", "contex"), ["contexts"])

    def test_options(self):
        for verb in set(verbs()):
            usage = output(PASIDCTL, verb, "--help").splitlines()[0]
            expected = {re.sub("^-o$", "--output", o) for o in re.findall(r"-o\b|--[a-z-]+", usage)} | {"--help"}
            self.assertEqual(set(complete(verb, "-")), expected, verb)

    def test_words(self):
        self.assertEqual(complete("driver", ""), ["new"])
        self.assertEqual(complete("maps", "--bus", "sy"), ["system"])
        self.assertEqual(complete("trace", "--output", "/etc/pass")[0][:11], "/etc/passwd")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])

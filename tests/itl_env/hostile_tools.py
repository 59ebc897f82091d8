"""What a model may send to a tool at its worst, as data; the tests say what must come of it."""

from typing import NamedTuple


class Hostile(NamedTuple):
    """One input of one tool.

    tool: "calculator", "monty" (its Python executor) or "cpython" (the subprocess executor).
    codes: the error codes that are right, None for a result; any if empty. In `text`, {canary} is
    the path of a file that is not to be read or changed, {folder} the one it lies in, {socket} the
    path of a socket that listens, and {segment} the key of shared memory.
    """

    id: str
    tool: str
    text: str
    codes: frozenset[str | None]


def _of(tool: str, codes: str, items: dict[str, str]) -> list[Hostile]:
    """Items that share their codes; "ok" is no error."""
    right = frozenset(None if code == "ok" else code for code in codes.split())
    return [Hostile(f"{tool}: {name}", tool, text, right) for name, text in items.items()]


_HEX = "0x" + "f" * 150
CALCULATOR = [
    *_of(
        "calculator",
        "forbidden",
        {
            "attribute": "(1).__class__",
            "attribute of float": "1.0.real",
            "attribute spaced": "1 . real",
            "subclasses": "().__class__.__base__.__subclasses__()",
            "function attribute": "abs.__self__",
            "import": "__import__('os').system('id')",
            "builtins": "__builtins__",
            "eval": "eval('1+1')",
            "open": "open('/etc/passwd')",
            "name": "x + 1",
            "function as value": "abs",
            "function of function": "max(abs, min)",
            "constant name": "True + 1",
            "none": "None",
            "ellipsis": "...",
            "string": "'a' * 10",
            "string product": "'a' * 10**9",
            "bytes": "b'a'",
            "format": "'{0.__class__}'.format(1)",
            "format width": "'%1000000000d' % 1",
            "f-string": "f'{1}'",
            "list": "[1] * 10**9",
            "tuple": "1, 2",
            "tuple product": "(1, 2) * 10**9",
            "empty tuple": "()",
            "dict": "{1: 2}",
            "comprehension": "[x for x in range(10**9)]",
            "generator": "max(x for x in (1, 2))",
            "subscript": "(1, 2)[0]",
            "comparison": "1 < 2",
            "equation": "2 + 2 = 4",
            "ends in equals": "2 + 2 =",
            "boolean": "1 and 2",
            "not": "not 1",
            "invert": "~1",
            "conditional": "1 if 1 else 2",
            "conditional warning": "1if 1else 2",
            "lambda": "(lambda: 1)()",
            "walrus": "(x := 1)",
            "starred": "max(*(1, 2))",
            "keyword": "max(1, 2, key=abs)",
            "power function": "pow(9, 9**9)",
            "call of a number": "2(3)",
            "call of a call": "abs(1)(2)",
            "shift": "1 << 10**10",
            "xor": "2 ^ 10",
            "matrix": "1 @ 2",
            "complex": "1j",
            "hexadecimal": _HEX,
            "statements": "1; 2",
            "comment": "1 # 2",
            "continuation": "1 \\\n+ 2",
            "fullwidth digits": "１ + ２",
            "arabic digits": "٣ + ٤",
            "superscript": "2²",
            "fullwidth function": "ａｂｓ(1)",
            "mathematical letters": "𝐚𝐛𝐬(1)",
            "times sign": "2 × 3",
            "minus sign": "5 − 3",
            "cyrillic": "аbs(1)",
            "no-break space": "1 +\xa02",
            "right to left": "1 + \u202e2",
            "infinity": "inf",
            "nan": "nan - nan",
            "upper case": "ABS(1)",
            "underscores": "__",
            "dollar": "$5 + $3",
            "json": '{"expression": "1 + 1"}',
        },
    ),
    *_of(
        "calculator",
        "too_large",
        {
            "tower": "9**9**9**9",
            "power of power": "(10**200)**200",
            "huge power": "2**10**9",
            "powers multiplied": "*".join(["9**300"] * 25),
            "tower of twos": "**".join("2" * 60),
            "float power": "10.0**400",
            "negative base": "(-9)**9**9",
            "negative float power": "0.5**-10**4",
        },
    ),
    *_of(
        "calculator",
        "not_finite",
        {
            "literal": "1e999",
            "product": "1e308 * 10",
            "sum": "1e308+1e308",
            "root": "(-8)**0.5",
            "floor": "1e308 // 1e-308",
            "minus": "-1e999 + 1e999",
        },
    ),
    *_of(
        "calculator",
        "division_by_zero",
        {
            "zero": "1 / 0",
            "modulo": "1 % 0",
            "float modulo": "1 % 0.0",
            "floor zero": "1 // 0",
            "power zero": "0**-1",
            "float power zero": "0.0**-2",
        },
    ),
    *_of(
        "calculator",
        "ok",
        {
            "tiny": "2**-10**9",
            "underflow": "1e-400",
            "one to a huge power": "1**10**200",
            "signs": "-" * 199 + "1",
            "parentheses": "(" * 99 + "1" + ")" * 99,
            "long sum": "+".join("1" * 100),
            "many arguments": "max(" + ",".join("1" * 97) + ")",
            "all digits": "9" * 200,
        },
    ),
    *_of(
        "calculator",
        "malformed",
        {
            "unclosed": "(" * 200,
            "unopened": ")" * 200,
            "unfinished": "2 +",
            "two numbers": "2 3",
            "two lines": "1\n2",
            "leading zeros": "007",
            "dots": "1.2.3",
            "no arguments": "abs()",
            "one argument": "max(1)",
            "three arguments": "round(1, 2, 3)",
            "round up": "round(1, 10**9)",
            "round down": "round(1, -10**9)",
            "round by a float": "round(1.5, 1.0)",
            "number and function": "1abs(2)",
        },
    ),
    *_of(
        "calculator",
        "too_long",
        {
            "megabyte": "1" * 1_000_000,
            "deep": "(" * 100_000,
            "signs for ever": "-" * 100_000 + "1",
            "nul for ever": "\0" * 1000,
        },
    ),
    *_of(
        "calculator",
        "invalid_text",
        {"nul": "1\0+1", "surrogate": "1 + \ud800", "surrogate digit": "\udc31"},
    ),
    *_of("calculator", "empty", {"nothing": "", "space": " \n\t\r\u2028"}),
]

# Endless work of many kinds; each costs the time limit.
_ENDLESS = {
    "loop": "while True: pass",
    "loop that catches": "while True:\n try:\n  while True: pass\n except BaseException: pass",
    "sum": "print(sum(range(10**12)))",
    "growing list": "x = [1]\nfor y in x: x.append(y)",
    "recursion that catches": "def f():\n try: f()\n except RecursionError: f()\nf()",
    "factorial": "import math\nmath.factorial(10**8)",
    "power": "x = 3**10**6\nwhile True: x = x * x % 10**6",
    "power with modulus": "while True: pow(3, 10**4000, 10**4000 + 1)",
    "replace": "a = 'x' * 10**7\nwhile True: a.replace('x', 'y')",
}

MONTY = [
    *_of("monty", "time_limit memory_limit", _ENDLESS),
    *_of(
        "monty",
        "forbidden",
        {
            "read": "print(open('{canary}').read())",
            "write": "open('{folder}/new', 'w').write('x')",
            "append": "with open('{canary}', 'a') as f: f.write('x')",
            "relative": "open('new', 'w').write('x')",
            "up": "print(open('../../../../../../etc/passwd').read())",
            "pathlib": "from pathlib import Path\nprint(Path('{canary}').read_text())",
            "write by pathlib": "from pathlib import Path\nPath('{folder}/new').write_text('x')",
            "folder": "import os\nprint(os.listdir('{folder}'))",
            "exists": "import os\nprint(os.path.exists('{canary}'))",
            "remove": "import os\nos.remove('{canary}')",
            "make folder": "import os\nos.mkdir('{folder}/new')",
            "rename": "import os\nos.rename('{canary}', '{canary}2')",
            "process files": "print(open('/proc/self/environ').read())",
            "memory": "print(open('/proc/self/mem', 'rb').read())",
            "device": "print(open('/dev/urandom', 'rb').read(10))",
            "environment": "import os\nprint(os.environ)",
            "environment variable": "import os\nprint(os.getenv('ITL_CANARY'))",
            "change folder": "import os\nos.chdir('/')",
            "random": "import os\nprint(os.urandom(8))",
        },
    ),
    *_of(
        "monty",
        "unsupported",
        {
            "socket": "import socket\nsocket.create_connection(('127.0.0.1', 22))",
            "http": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
            "connection": "import asyncio\nasyncio.run(asyncio.open_connection('127.0.0.1', 22))",
            "subprocess": "import subprocess\nsubprocess.run(['id'])",
            "system": "import os\nos.system('id')",
            "fork": "import os\nwhile True: os.fork()",
            "exec": "import os\nos.execv('/bin/sh', ['sh'])",
            "kill": "import os\nos.kill(os.getppid(), 9)",
            "hard exit": "import os\nos._exit(0)",
            "exit": "import sys\nsys.exit(1)",
            "modules": "import sys\nprint(sys.modules)",
            "frames": "import sys\nprint(sys._getframe())",
            "raise the limit": "import sys\nsys.setrecursionlimit(10**9)",
            "signal": "import signal\nsignal.alarm(1)",
            "ctypes": "import ctypes\nctypes.string_at(0)",
            "threads": "import threading\nthreading.Thread(target=print).start()",
            "processes": "import multiprocessing",
            "builtins module": "import builtins\nbuiltins.print = None",
            "import function": "__import__('os').system('id')",
            "importlib": "import importlib\nimportlib.import_module('os')",
            "star import": "from os import *",
            "from import": "from os import system\nsystem('id')",
            "garbage": "import gc\nprint(gc.get_objects())",
            "input": "print(input())",
            "breakpoint": "breakpoint()",
            "globals": "print(globals())",
            "compile": "exec(compile('1', '', 'exec'))",
            "class of a tuple": "print(().__class__.__base__.__subclasses__())",
            "class of a number": "print((1).__class__)",
            "format": "print('{0.__class__}'.format(1))",
            "globals of a function": "def f(): pass\nprint(f.__globals__)",
            "code of a function": "def f(): pass\nf.__code__ = None",
            "metaclass": "class M(type): pass\nclass A(metaclass=M): pass",
            "own exception": "class E(Exception):\n def __repr__(self): raise E\nraise E",
            "generator": "def g():\n while True: yield 1\nprint(list(g()))",
            "pickle": "import pickle\npickle.loads(b'cos\\nsystem\\n.')",
            "delete": "x = 1\ndel x",
            "close standard output": "import sys\nsys.stdout.close()",
        },
    ),
    *_of(
        "monty",
        "memory_limit",
        {
            "list": "x = [0] * 10**9",
            "string": "x = 'a' * 10**10",
            "grow": "x = []\nwhile True: x.append('a' * 10**5)",
            "catch": "try: 'a' * 10**10\nexcept MemoryError: pass\nwhile True: pass",
            "tower": "9**9**9",
            "shift": "1 << 10**10",
            "width": "print('%1000000000d' % 1)",
            "format width": "print(f'{1:1000000000}')",
            "centre": "print('a'.center(10**10))",
            "range": "list(range(10**9))",
            "nested lists": "x = [[0] * 10**6 for _ in range(10**6)]",
            "double": "x = 'a'\nwhile True: x += x",
            "bytes": "x = b'a' * 10**10",
            "join": "','.join(['a' * 10**6] * 10**4)",
        },
    ),
    *_of(
        "monty",
        "time_limit memory_limit",
        {
            "dictionary": "d = {}\ni = 0\nwhile True:\n d[i] = i\n i += 1",
            "set of tuples": "s = set()\ni = 0\nwhile True:\n s.add((i, i))\n i += 1",
            "wide format": "'{:>999999999}'.format(1)",
        },
    ),
    *_of(
        "monty",
        "output_limit",
        {
            "flood": "while True: print('x' * 1000)",
            "flood without lines": "while True: print('x', end='')",
            "one megabyte": "print('x' * 10**6)",
            "numbers": "for i in range(10**6): print(i)",
            "flood that catches": "while True:\n try: print('x' * 99)\n except BaseException: pass",
        },
    ),
    *_of(
        "monty",
        "exception",
        {
            "long number": "print(10**5000)",
            "recursion": "def f(): return f()\nf()",
            "interrupt": "raise KeyboardInterrupt",
            "long message": "raise ValueError('x' * 10**6)",
            "lines in a message": "raise ValueError('a\\nb')",
            "exit with words": "raise SystemExit('bye')",
            "own timeout": "raise TimeoutError('mine')",
            "own limit": "raise MemoryError()",
            "own permission": "raise PermissionError('x')",
            "json": "import json\njson.loads('[' * 10**5)",
            "name spoof": "raise AttributeError(\"module 'antigravity' has no attribute 'x'\")",
            "regex memory": "import re\nre.compile('(((a{1000}){1000}){1000})')",
            "number from text": "int('9' * 5000)",
        },
    ),
    *_of(
        "monty",
        "exception ok",
        {
            "regex": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
            "regex with backtracking": "import re\nre.match(r'(.*)*(.*)*(.*)*\\1x', 'a' * 9999)",
            "surrogate": "print('\\ud800')",
        },
    ),
    *_of(
        "monty",
        "malformed",
        {
            "unfinished": "print(",
            "deep": "print(" + "(" * 3000 + "1" + ")" * 3000 + ")",
            "deep list": "[" * 4000 + "]" * 4000,
            "signs": "-" * 5000 + "1",
            "deep eval": "eval('(' * 9999 + ')' * 9999)",
            "indent": "  x = 1\n y = 2",
            "open string": 'x = """',
            "null eval": "exec('1 +')",
            "bidirectional": "x = 1 \u202e+",
        },
    ),
    *_of(
        "monty",
        "ok",
        {
            "sleep": "import time\ntime.sleep(1000)",
            "task": "import asyncio\nasync def f(): await asyncio.sleep(1000)\nasyncio.run(f())",
            "value": "x = []\nfor _ in range(10**4): x = [x]\nx",
            "cycle": "x = []\nx.append(x)\nprint(x)",
            "del": "class A:\n def __del__(self): print('x')\nA()",
            "nul": "print('\\0')",
            "escape": "print('\\x1b]0;title\\x07')",
            "terminator": "print('```')",
            "clean exit": "raise SystemExit",
            "standard error": "import sys\nfor _ in range(10**4): print('x', file=sys.stderr)",
        },
    ),
    *_of("monty", "invalid_text", {"nul text": "print('\0')", "surrogate text": "print('\ud800')"}),
    *_of("monty", "too_long", {"megabyte": "x = 1\n" * 200_000}),
    *_of("monty", "empty", {"nothing": "", "space": " \n\t\r\u2028"}),
]

_LEAK = """import os
for name in os.listdir('/proc'):
    try: data = open(f'/proc/{name}/environ').read()
    except OSError: continue
    print(data)"""
_DAEMON = """import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
    os._exit(0)
print('gone')"""
_ESCAPE = """import ctypes, os, signal, time
ctypes.CDLL(None).prctl(1, 0)
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
time.sleep(1000)"""
_THREADS = """import threading, time
for _ in range(1000): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"""
_SEGMENT = """import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if libc.shmget({segment}, 0, 0) < 0: raise OSError(ctypes.get_errno(), 'no segment')"""
# With the rights of a name space of its own.
_RIGHTS = """import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x10020000)
"""
_REMOUNT = _RIGHTS + "if libc.mount(None, b'/usr', None, 32 | 4096, None): raise OSError('refused')"
_UNMOUNT = _RIGHTS + "if libc.umount2(b'/usr', 2): raise OSError('refused')"
_DEEP = "import os\nfor _ in range(1100):\n os.mkdir('a')\n os.chdir('a')"

CPYTHON = [
    *_of(
        "cpython",
        "time_limit",
        {
            "loop": "while True: pass",
            "sleep": "import time\ntime.sleep(1000)",
            "closed output": "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(1000)",
            "errors flood": "import sys\nwhile True: sys.stderr.write('x' * 10**5)",
            "signals ignored": _ESCAPE,
            "regex": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
            "fork and wait": "import os, time\nos.fork()\nos.fork()\ntime.sleep(1000)",
            "stopped": "import os\nif os.fork() == 0: os.kill(os.getpid(), 19)\nelse: os.wait()",
        },
    ),
    *_of(
        "cpython",
        "time_limit memory_limit exception crashed",
        {
            "threads": _THREADS,
            "tower": "9**9**9**9",
            "dictionary": "d = {}\ni = 0\nwhile True:\n d[i] = i\n i += 1",
        },
    ),
    *_of(
        "cpython",
        "output_limit",
        {
            "flood": "while True: print('x' * 1000)",
            "flood without lines": "import sys\nwhile True: sys.stdout.write('x' * 10**5)",
            "forked flood": "import os\nos.fork()\nwhile True: print('x' * 1000)",
            "raw flood": "import os\nwhile True: os.write(1, b'\\xff' * 10**5)",
        },
    ),
    *_of(
        "cpython",
        "memory_limit",
        {
            "list": "x = [0] * 10**9",
            "string": "x = 'a' * 10**10",
            "grow": "x = []\nwhile True: x.append('a' * 10**6)",
        },
    ),
    *_of(
        "cpython",
        "exception",
        {
            "network": "import socket\nsocket.create_connection(('127.0.0.1', 22))",
            "raw socket": "import socket\nsocket.socket(17, socket.SOCK_RAW)",
            "write": "f = open('new', 'w')\nf.write('x')\nf.flush()",
            "raise a limit": "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))",
            "mapped memory": "import mmap\nmmap.mmap(-1, 10**9)",
            "memory file": "import os\nos.write(os.memfd_create('x'), b'x')",
            "many files": "x = [open('/dev/null') for _ in range(100)]",
            "input": "print(input())",
            "exit": "import sys\nsys.exit(3)",
            "exit with words": "import sys\nsys.exit('bye')",
            "large exit": "import os\nos._exit(200)",
            "recursion": "def f(): f()\nf()",
            "broken exception": "class E(Exception):\n def __str__(self): raise E\nraise E",
            "long number": "print(10**5000)",
            "read a file": "print(open('{canary}').read())",
            "read above the root": "print(open('/..{canary}').read())",
            "map a file": "import mmap\nmmap.mmap(open('{canary}', 'r+b').fileno(), 0)[0] = 0",
            "truncate": "import os\nos.truncate('{canary}', 0)",
            "open to truncate": "open('{canary}', 'w')",
            "rename": "import os\nos.rename('{canary}', '{canary}2')",
            "replace": "import os\nopen('new', 'w').close()\nos.replace('new', '{canary}')",
            "change a mode": "import os\nos.chmod('{canary}', 0)",
            "change times": "import os\nos.utime('{canary}', (0, 0))",
            "remove": "import os\nos.remove('{canary}')",
            "empty file outside": "open('{folder}/new', 'w')",
            # These would change nothing if they were let through.
            "interpreter's file": "import os\nopen(os.__file__, 'r+')",
            "interpreter's mode": "import os\nos.chmod(os.__file__, os.stat(os.__file__).st_mode)",
            "interpreter's folder": "import os\nos.rename(os.__file__, os.__file__)",
            "local socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('{socket}')",
            "root of another process": "import os\nos.listdir('/proc/1/root')",
            "shared memory": _SEGMENT,
            "mount again": _REMOUNT,
            "unmount": _UNMOUNT,
            "many empty files": "for i in range(10**6): open(str(i), 'w').close()",
            "spoofed failure": "import sys\nsys.exit('unshare: unshare failed')",
            "packages": "import numpy",
            "host": "import os\nos.kill(-1, 9)",
            "other process": "import os\nos.kill(2**15, 9)",
        },
    ),
    *_of(
        "cpython",
        "crashed",
        {"null pointer": "import ctypes\nctypes.string_at(0)", "abort": "import os\nos.abort()"},
    ),
    *_of(
        "cpython",
        "ok",
        {
            "environment": "import os\nprint(os.environ)",
            "environment of all": _LEAK,
            "daemon": _DAEMON,
            "kill itself": "import os\nos.kill(os.getpid(), 9)",
            "kill its group": "import os\nos.killpg(0, 9)",
            "kill its parent": "import os\nos.kill(os.getppid(), 9)",
            "clean exit": "import sys\nsys.exit(0)",
            "bytes": "import os\nos.write(1, b'\\xff\\xfe')",
            "del": "class A:\n def __del__(self): raise ValueError\nA()",
            "deep folders": _DEEP,
            "link": "import os\nos.symlink('{folder}', 'link')",
            "closed": "import os\nos.close(0)\nos.close(1)\nos.close(2)",
        },
    ),
    *_of(
        "cpython",
        "malformed",
        {"unfinished": "print(", "deep": "(" * 5000, "indent": "  x = 1\n y = 2"},
    ),
    *_of(
        "cpython", "invalid_text", {"nul text": "print('\0')", "surrogate text": "print('\ud800')"}
    ),
    *_of("cpython", "too_long", {"megabyte": "x = 1\n" * 200_000}),
    *_of("cpython", "empty", {"nothing": ""}),
]


FIND = {
    "quote": ("birth_place", "' OR '1'='1"),
    "stacked": ("birth_place", "x'; DROP TABLE people; --"),
    "union": ("birth_place", "' UNION SELECT name FROM people --"),
    "update": ("birth_place", "'; UPDATE people SET name = 'x' WHERE 'a' = 'a"),
    "double quote": ("birth_place", 'x" OR ""="'),
    "percent": ("birth_place", "%"),
    "placeholders": ("birth_place", "%s %(name)s :name ? $1 {0.__class__}"),
    "wildcards": ("birth_place", "_%*?"),
    "backslash": ("birth_place", "\\' OR 1=1 --\\"),
    "json": ("birth_place", '"],["'),
    "nul": ("birth_place", "a\0b"),
    "surrogate": ("birth_place", "\ud800"),
    "escape": ("birth_place", "\x1b]0;title\x07"),
    "nothing": ("birth_place", ""),
    "space": ("birth_place", " \n\t\r\u2028"),
    "right to left": ("birth_place", "\u202eecila"),
    "huge name": ("birth_place", "x" * 1_000_000),
    "long name": ("birth_place", "'" * 3_000),
    "unknown attribute": ("salary", "Alice"),
    "name as an attribute": ("name", "Alice"),
    "injected attribute": ("birth_place FROM people; DROP TABLE people; --", "Alice"),
    "quoted attribute": ('birth_place" FROM people --', "Alice"),
    "every attribute": ("*", "Alice"),
    "attribute with percent": ("birth_place%s", "Alice"),
    "attribute with nul": ("birth_place\0", "Alice"),
    "attribute of Python": ("__class__", "Alice"),
    "no attribute": ("", ""),
    "huge attribute": ("x" * 3_000, "Alice"),
}
"""Attributes and names for the tool `find`."""


def fill(text: str, **places: str) -> str:
    """The text with what it is to reach for in its places; its other braces stay."""
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", place)
    return text

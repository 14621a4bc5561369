"""Which chapter of the Python library reference a standard-library module belongs to.

The reference has some thirty chapters, many of two or three modules; neighbouring ones are joined here into seven, so
that each holds enough docstrings to learn from. The table covers Python 3.11 to 3.14; a module it does not name
belongs to no chapter and is left out of the classification task.
"""

from __future__ import annotations

_TABLE: dict[str, str] = {
    "text and markup": """
        string re sre_compile sre_constants sre_parse difflib textwrap stringprep readline gettext locale codecs
        html xml _markupbase shlex""",
    "data types and numbers": """
        datetime _pydatetime _strptime zoneinfo calendar collections _collections_abc heapq bisect weakref
        _weakrefset types copy pprint reprlib enum graphlib numbers decimal _pydecimal _pylong fractions random
        statistics functools operator annotationlib""",
    "files and formats": """
        pathlib posixpath ntpath genericpath nturl2path fileinput stat filecmp tempfile glob fnmatch linecache
        shutil pickle copyreg _compat_pickle shelve dbm sqlite3 gzip bz2 lzma zipfile tarfile compression
        _compression csv configparser tomllib netrc plistlib xdrlib zipapp""",
    "operating system and concurrency": """
        os io _pyio argparse getopt optparse logging getpass curses platform ctypes threading _threading_local
        multiprocessing concurrent subprocess sched queue contextvars pty tty crypt pipes asyncio socket ssl
        selectors asyncore asynchat signal""",
    "internet and mail": """
        email json mailbox mailcap mimetypes base64 quopri uu webbrowser wsgiref urllib http ftplib poplib imaplib
        nntplib smtplib smtpd telnetlib uuid socketserver xmlrpc ipaddress cgi cgitb hashlib hmac secrets""",
    "development and runtime": """
        typing pydoc doctest unittest bdb pdb timeit trace tracemalloc pstats profile cProfile profiling distutils
        venv _sitebuiltins sysconfig warnings _py_warnings dataclasses contextlib abc _py_abc traceback __future__
        inspect site code codeop _colorize zipimport pkgutil modulefinder runpy importlib imp ast _ast_unparse
        symtable token keyword tokenize tabnanny pyclbr py_compile compileall dis opcode _opcode_metadata
        pickletools""",
    "graphics and multimedia": """
        tkinter turtle cmd colorsys wave aifc sunau chunk sndhdr imghdr""",
}
_CHAPTER_OF = {module: chapter for chapter, modules in _TABLE.items() for module in modules.split()}

CHAPTERS: tuple[str, ...] = tuple(_TABLE)
"""The labels, in a fixed order: a label's index is its class number."""


def chapter_of(file_name: str) -> str | None:
    """The chapter of a standard-library file such as `email/message.py`, or None where the table does not say."""
    return _CHAPTER_OF.get(file_name.partition("/")[0].removesuffix(".py"))

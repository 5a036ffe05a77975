"""Rebuild everything in data/ from the original packages, byte for byte.

    python data/build.py --packages DIR           fetch what DIR lacks, build, write to data/
    python data/build.py --packages DIR --check   build in a temporary folder and compare with data/

`sources` lists packages and domains, `extract` turns packages into text, `prepare` turns text into documents.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

# One thread, so that a rebuild does not slow down whatever else runs; set before tokenizers is loaded.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# isort: split
import prepare
from sources import DOMAINS, PACKAGES, Domain, Package

DATA = Path(__file__).resolve().parent
SEED = 20260101
END = "<|endoftext|>"
VOCABULARY = 2048
# File bytes depend on these two versions: parquet names its writer, the tokenizer file its format.
VERSIONS = {"pyarrow": "26.0.1", "tokenizers": "0.23.3"}

TARGET = {"train": 1_500_000, "seed": 1_500_000, "toy": 1_500_000, "evaluation": 200_000}  # bytes of text
BLOCK = {"train": 8_000, "seed": 8_000, "toy": 8_000, "evaluation": 4_000}  # bytes of a document, at most
TRAINED = {"train": 0.8, "validation": 0.1, "test": 0.1}
SHARES = {"train": TRAINED, "seed": TRAINED, "toy": TRAINED, "evaluation": {"validation": 0.5, "test": 0.5}}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(
            f"{name} not found: rebuild on Debian or Ubuntu, or put the package files into --packages"
        )
    return found


def fetch(package: Package, folder: Path) -> Path:
    """The package file in `folder`, downloaded there if missing, with its checksum verified."""
    path = folder / package.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".deb":
            architecture = path.stem.rsplit("_", 1)[1]
            qualified = package.name if architecture == "all" else f"{package.name}:{architecture}"
            command = [tool("apt-get"), "download", f"{qualified}={package.version}"]
        else:
            form = "--only-binary" if path.suffix == ".whl" else "--no-binary"
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                form,
                ":all:",
                f"{package.name}=={package.version}",
            ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode or not path.exists():
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise FileNotFoundError(
                f"could not download {package.name} {package.version}; the command said: {said}\n"
                "Run 'apt-get update' and try again. If the maintainers have withdrawn this version, get "
                f"the file {package.file} with SHA-256 {package.sha256} from an archive of old packages "
                f"and put it into {folder}"
            )
    if sha256(path) != package.sha256:
        raise ValueError(f"{path} has SHA-256 {sha256(path)}, expected {package.sha256}: delete it and run again")
    return path


def unpack(path: Path, root: Path) -> Path:
    root.mkdir()
    if path.suffix == ".deb":
        subprocess.run([tool("dpkg-deb"), "-x", path, root], check=True)
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(root)
    else:
        with tarfile.open(path) as archive:
            archive.extractall(root, filter="data")
    return root


def write(path: Path, rows: list[tuple[str, str, str]]) -> None:
    """Rows of (text, split, source) in split order; every writer option that shapes the bytes is set."""
    names = ["train", "validation", "test"]
    rows = sorted(rows, key=lambda row: names.index(row[1]))
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    pq.write_table(
        pa.table(columns, names=["text", "split", "source"]),
        path,
        version="2.6",
        compression="zstd",
        compression_level=19,
        use_dictionary=["split"],
        row_group_size=len(rows),
        data_page_size=1 << 26,  # one page, so that zstd sees the whole column
        write_statistics=False,
        store_schema=False,
    )


def train_tokenizer(texts: dict[str, list[str]], vocabulary: int) -> Tokenizer:
    """Byte-level BPE on an equal number of bytes of every domain."""
    share = min(sum(map(prepare.size, domain)) for domain in texts.values())
    corpus = []
    for domain in texts.values():
        left = share
        for text in domain:
            corpus.append(text.encode()[:left].decode(errors="ignore"))
            left -= prepare.size(text)
            if left <= 0:
                break
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if tokenizer.get_vocab_size() != vocabulary or tokenizer.token_to_id(END) != 0:
        raise ValueError(
            f"tokenizer has {tokenizer.get_vocab_size()} entries, expected {vocabulary}: train on more text"
        )
    return tokenizer


def count(tokenizer: Tokenizer, texts: list[str]) -> int:
    return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))


def card_entry(
    domain: Domain, rows: list[tuple[str, str, str]], dropped: int, tokenizer: Tokenizer, path: Path
) -> dict:
    splits = list(SHARES[domain.kind])
    texts = {name: [text for text, split, _ in rows if split == name] for name in splits}
    whole = "\n\n".join(text for name in splits for text in texts[name]).encode()
    package = PACKAGES.get(domain.package)
    # The same amount of training text for all, as much as the smallest source has.
    train = "\n\n".join(texts.get("train", [])).encode()[:400_000]
    test = "\n\n".join(texts["test"]).encode()
    ngram = round(prepare.ngram_bits(train, test), 2) if train else None
    return {
        "name": domain.name,
        "kind": domain.kind,
        "difficulty": domain.difficulty,
        "title": domain.title,
        "origin": package
        and {
            "package": package.name,
            "version": package.version,
            "file": package.file,
            "sha256": package.sha256,
        },
        "licence": domain.licence,
        "attribution": domain.note,
        "documents": {name: len(texts[name]) for name in splits},
        "bytes": {name: sum(map(prepare.size, texts[name])) for name in splits},
        "tokens": {name: count(tokenizer, texts[name]) for name in splits},
        "ngram": ngram,
        "zlib": round(len(zlib.compress(whole, 9)) / len(whole), 3),
        "near_duplicates_dropped": dropped,
        "file": path.name,
        "sha256": sha256(path),
    }


def table(card: list[dict]) -> str:
    head = "| domain | kind | what | MB | documents | tokens | bytes/token | n-gram | zlib | licence | origin |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for entry in card:
        size, tokens = sum(entry["bytes"].values()), sum(entry["tokens"].values())
        origin = entry["origin"]
        cells = [
            entry["name"],
            entry["kind"] + (f", {entry['difficulty']}" if entry["difficulty"] else ""),
            entry["title"],
            f"{size / 1e6:.2f}",
            f"{sum(entry['documents'].values()):,}",
            f"{tokens:,}",
            f"{size / tokens:.2f}",
            f"{entry['ngram']:.2f}" if entry["ngram"] else "",
            f"{entry['zlib']:.3f}",
            entry["licence"],
            f"{origin['package']} {origin['version']}" if origin else "stories.py",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measurements(texts: dict[str, list[str]], held_out: dict[str, list[str]]) -> str:
    """Bytes per token on the validation splits, mean over the domains of a kind, by vocabulary."""
    lines = [
        "| vocabulary | nine training domains | seed mix | evaluation-only domains |",
        "|---|---|---|---|",
    ]
    for vocabulary in (1024, 2048, 4096):
        tokenizer = train_tokenizer(texts, vocabulary)
        cells = []
        for kind in ("train", "seed", "evaluation"):
            domains = [held_out[domain.name] for domain in DOMAINS if domain.kind == kind]
            ratios = [sum(map(prepare.size, domain)) / count(tokenizer, domain) for domain in domains]
            cells.append(f"{sum(ratios) / len(ratios):.2f}")
        lines.append(f"| {vocabulary:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fill(readme: str, name: str, content: str) -> str:
    """Replace what stands between the markers of `name`."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    if readme.count(start) != 1 or readme.count(end) != 1:
        raise ValueError(f"README.md needs the markers {start.strip()!r} and {end.strip()!r} once each")
    return readme[: readme.index(start) + len(start)] + content + readme[readme.index(end) :]


def build(packages: Path, out: Path) -> None:
    """Write all parquet files, tokenizer.json, card.json and README.md to `out`."""
    seen, built = prepare.Seen(), {}
    with tempfile.TemporaryDirectory() as work:
        for domain in DOMAINS:
            root = Path(work) / (domain.package or "none")
            if domain.package and not root.exists():
                unpack(fetch(PACKAGES[domain.package], packages), root)
            found = list(prepare.documents(domain.extractor(root), BLOCK[domain.kind]))
            ranks = prepare.order(len(found), SEED, domain.name)
            known = None if domain.kind == "toy" else seen
            kept, dropped = prepare.sample(found, ranks, TARGET[domain.kind], known)
            splits = prepare.split(kept, SHARES[domain.kind])
            rows = [(text, split, source) for (source, text), split in zip(kept, splits, strict=True)]
            write(out / f"{domain.name}.parquet", rows)
            built[domain.name] = rows, dropped
            print(f"{domain.name}: {len(found)} documents, {len(kept)} kept, {dropped} near-duplicates dropped")

    def texts(domain: Domain, split: str) -> list[str]:
        return [text for text, name, _ in built[domain.name][0] if name == split]

    base = {domain.name: texts(domain, "train") for domain in DOMAINS if domain.kind in ("train", "seed")}
    tokenizer = train_tokenizer(base, VOCABULARY)
    tokenizer.save(str(out / "tokenizer.json"))
    for name, (rows, _) in built.items():
        for text, _, source in rows:
            if tokenizer.decode(tokenizer.encode(text).ids) != text:
                raise ValueError(f"{name}, {source}: decoding does not give the text back; does it contain {END}?")
    card = [card_entry(domain, *built[domain.name], tokenizer, out / f"{domain.name}.parquet") for domain in DOMAINS]
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    readme = fill((DATA / "README.md").read_text(encoding="utf-8"), "domains", table(card))
    held_out = {domain.name: texts(domain, "validation") for domain in DOMAINS}
    readme = fill(readme, "vocabularies", measurements(base, held_out))
    (out / "README.md").write_text(readme, encoding="utf-8")


def differences(committed: Path, rebuilt: Path) -> list[str]:
    """Names of files that are not the same, or are on one side only."""
    names = {path.name for path in rebuilt.iterdir()} | {path.name for path in committed.glob("*.parquet")}
    return sorted(
        name
        for name in names
        if not ((committed / name).exists() and (rebuilt / name).exists())
        or (committed / name).read_bytes() != (rebuilt / name).read_bytes()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder with package files; missing ones go there")
    parser.add_argument("--check", action="store_true", help="build elsewhere and compare; exit 1 on a difference")
    arguments = parser.parse_args()
    installed = {"pyarrow": pa.__version__, "tokenizers": tokenizers.__version__}
    if installed != VERSIONS:
        pins = " ".join(f"{name}=={version}" for name, version in VERSIONS.items())
        parser.error(f"found {installed}; file bytes depend on these versions: pip install {pins}")
    with tempfile.TemporaryDirectory() as folder:
        build(arguments.packages.resolve(), Path(folder))
        changed = differences(DATA, Path(folder))
        for name in changed:
            print(f"{'differs' if arguments.check else 'written'}: {name}")
        if arguments.check:
            print("data/ is what its packages give" if not changed else f"{len(changed)} files differ")
            return 1 if changed else 0
        for name in changed:
            if (Path(folder) / name).exists():
                shutil.copyfile(Path(folder) / name, DATA / name)
            else:
                (DATA / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())

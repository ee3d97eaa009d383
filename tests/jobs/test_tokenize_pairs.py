"""The pairs job as a user types it: what goes well, and one clear line for what does not."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from jobs.config_file import parse_config
from jobs.tokenize_pairs import PairsJobConfig
from pipeline.inspect_shards import main as seed_shards
from pipeline.token_dataset import OutputMismatchError
from schemas.token_shard import read_documents, read_footer
from tests.pipeline.ray_runs import run
from tests.pipeline.tiny_shards import (
    ROOT,
    job_command,
    job_environment,
    leftovers,
    pair_members,
    png,
    run_job,
    token_files,
    write_shards,
    write_tar,
)

SAMPLES = ROOT / "samples" / "pairs"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("in"), 4, 10)


def refused(*flags: str, status: int = 2, environment: dict[str, str] | None = None) -> str:
    """The one line that a run ends with."""
    result = run_job(*flags, environment=environment)
    assert result.returncode == status, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_real_pictures_with_the_sample_tokenizer(tmp_path: Path) -> None:
    """Codes of the job are the codes of the tokenizer called directly."""
    from tokenizer.checkpoint import load_tokenizer
    from tokenizer.preprocess import PreprocessConfig, load_image

    folder = tmp_path / "out"
    result = run_job(
        "--input", str(SAMPLES / "{00000..00000}.tar"), "--output", str(folder),
        "--tokenizer", "sample", "--batch-size", "8", "--decode-workers", "1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    documents = list(read_documents(folder / "00000.parquet"))
    assert len(documents) == read_footer(folder / "00000.parquet").counts.samples_read > 10
    tokenizer = load_tokenizer("sample", batch_size=8)
    with tarfile.open(SAMPLES / "00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    for document in documents[::5]:
        (name,) = [
            name for name in members if name.startswith(document.key) and not name.endswith((".txt", ".json"))
        ]
        codes = tokenizer.encode(load_image(members[name], PreprocessConfig())[None])
        assert document.images[0].codes.tolist() == codes[0].tolist()
        assert document.texts == [members[f"{document.key}.txt"].decode()]
    report = json.loads((folder / "_report.json").read_text())
    assert report["images_written"] == len(documents)
    assert report["fingerprint"] == read_footer(folder / "00000.parquet").fingerprint.hex


def test_the_run_is_written_down(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run_job("--input", str(shards), "--output", str(folder)).returncode == 0
    (config,) = (folder / "_logs").glob("*.config.json")
    assert json.loads(config.read_text())["config"]["batch_size"] == 4
    (log,) = (folder / "_logs").glob("*[0-9a-f].jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    done = {event["name"] for event in events if event["event"] == "shard_done"}
    assert done == {"00000", "00001", "00002", "00003"}


def test_a_config_file_with_flags_over_it(shards: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"input: [{shards}]\noutput: {tmp_path / 'wrong'}\nlimit: 2\ntokenizer: 'null'\n")
    result = subprocess.run(
        [*job_command()[:2], "--config", str(config), "--output", str(tmp_path / "out"), "--num-actors", "0"],
        env=job_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert {name for name in token_files(tmp_path / "out") if name.endswith(".parquet")} == {
        "00000.parquet", "00001.parquet",
    }  # fmt: skip
    assert not (tmp_path / "wrong").exists()


def test_a_dry_run_writes_nothing(shards: Path, tmp_path: Path) -> None:
    result = run_job("--input", str(shards), "--output", str(tmp_path / "out"), "--dry-run")
    assert result.returncode == 0
    assert "4 source shards: 0 done, 0 failed before, 4 to do" in result.stdout
    assert not (tmp_path / "out").exists()


def test_a_dry_run_downloads_nothing(shards: Path, tmp_path: Path) -> None:
    # Any request would be refused, tried again, and said.
    hub = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    flags = ["--input", str(shards), "--output", str(tmp_path / "out"), "--tokenizer", "seed-2"]
    result = run_job(*flags, "--dry-run", environment=hub)
    assert result.returncode == 0
    assert "not checked: the tokenizer is not on this machine yet" in result.stdout
    assert "4 to do" in result.stdout
    assert "127.0.0.1" not in result.stderr


def test_overwrite_does_everything_again(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    flags = ["--input", str(shards), "--output", str(folder)]
    assert run_job(*flags).returncode == 0
    before = token_files(folder)
    assert "4 token shards were there before" in run_job(*flags).stdout
    (folder / "00001.parquet").write_bytes(b"damaged")
    assert "remove it and run the same command again" in refused(*flags)
    assert run_job(*flags, "--overwrite").returncode == 0
    assert token_files(folder) == before


def test_a_damaged_source_is_a_warning_and_with_strict_a_failure(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", 2, 10)
    whole = (shards / "00001.tar").read_bytes()
    (shards / "00001.tar").write_bytes(whole[: len(whole) // 2])
    for flags, status in (([], 0), (["--strict", "--overwrite"], 1)):
        result = run_job("--input", str(shards), "--output", str(tmp_path / "out"), *flags)
        assert result.returncode == status
        assert "1 source shard is damaged and was read in part: 00001" in result.stdout


def test_of_some_damaged_sources_nothing_could_be_read(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", 3, 10)
    (shards / "00001.tar").write_bytes(b"this is no tar" * 100)
    whole = (shards / "00002.tar").read_bytes()
    (shards / "00002.tar").write_bytes(whole[:600])  # cut inside the first sample
    result = run_job("--input", str(shards), "--output", str(tmp_path / "out"))
    assert result.returncode == 0
    assert "warning: nothing could be read of 2 damaged source shards: 00001 (byte 0: dam" in result.stdout
    assert "read in part" not in result.stdout
    assert "00001.tar is damaged (tar_corrupt): nothing of it could be read" in result.stderr
    assert "only a part" not in result.stderr


def test_samples_without_picture_or_caption_are_quarantined_and_their_neighbours_come_out(
    tmp_path: Path,
) -> None:
    members = [("a.png", png(1)), ("a.txt", b"one"), ("b.txt", b"no picture"), ("c.png", png(2)),
               ("d.png", png(3)), ("d.txt", b"four")]  # fmt: skip
    write_tar(tmp_path / "in" / "x.tar", members)
    result = run_job("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert result.returncode == 0
    assert "quarantined 1 sample: image_missing" in result.stdout
    assert "quarantined 1 sample: caption_missing" in result.stdout
    assert f"{tmp_path / 'out'}/NAME.quarantine-*.jsonl, beside" in result.stdout
    assert "not one sample" not in result.stderr
    assert [document.key for document in read_documents(tmp_path / "out" / "x.parquet")] == ["a", "d"]


def test_a_run_that_could_use_nothing_says_so(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "x.tar", [("a.png", png(1)), ("b.png", png(2))])
    result = run_job("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert result.returncode == 1
    (ledger,) = (tmp_path / "out").glob("x.quarantine-*.jsonl")
    expected = f"error: not one sample could be used: {ledger.name} begins with caption_missing"
    assert expected in result.stderr
    again = run_job("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert again.returncode == 1, "a folder without documents does not become right by itself"


def test_what_a_ledger_begins_with_is_cut_between_words(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "x.tar", [(f"a.word{number:02}", b"x") for number in range(40)])
    (problem,) = run(tmp_path / "in", tmp_path / "out", num_actors=0).problems(strict=False)
    assert re.search(r"\(members: .*\.word\d\d, …\): ", problem)


def test_a_run_that_could_use_nothing_says_so_in_a_folder_with_results_too(tmp_path: Path) -> None:
    """What earlier runs made of other inputs does not excuse this one's; the same command says it again."""
    sound, output = write_shards(tmp_path / "sound", 1, 3), ["--output", str(tmp_path / "out")]
    write_tar(tmp_path / "in" / "x.tar", [("a.png", png(1)), ("b.png", png(2))])
    assert run_job("--input", str(sound), *output).returncode == 0
    for _ in range(2):
        useless = run_job("--input", str(tmp_path / "in"), *output)
        assert useless.returncode == 1
        assert "error: not one sample could be used: x.quarantine-" in useless.stderr
    assert run_job("--input", str(tmp_path / "in"), str(sound), *output).returncode == 0


def test_metadata_fields_that_no_sample_has_are_named(tmp_path: Path) -> None:
    members = [*pair_members("a", 1), ("a.json", b'{"url": "u", "width": 3, "score": null}')]
    write_tar(tmp_path / "in" / "0.tar", members)
    flags = ["--input", str(tmp_path / "in"), "--num-actors", "0", "--decode-workers", "0"]
    output = ["--output", str(tmp_path / "out"), "--pairs.metadata-fields", "url", "urls", "score"]
    result = run_job(*flags, *output)
    assert result.returncode == 0, result.stderr
    line = "warning: --pairs.metadata-fields: none of one document has urls, score; they have url, width"
    assert line in result.stdout.splitlines()
    result = run_job(*flags, "--output", str(tmp_path / "all"), "--pairs.metadata-fields", "url")
    assert "warning" not in result.stdout


def test_output_into_a_pipe_that_nobody_reads() -> None:
    """``--help | head``: nothing is said of the write, nor of what Python flushes at its end."""
    tools = (["jobs/tokenize_pairs.py"], ["jobs/curves.py"], ["-m", "pipeline.inspect_shards"])
    for tool in tools:
        reader, writer = os.pipe()
        os.close(reader)
        result = subprocess.run(
            [sys.executable, *tool, "--help"], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, check=False
        )
        os.close(writer)
        assert result.stderr == b""
        assert result.returncode in (141, 0)  # argparse passes over what it cannot write


def test_clips_given_to_the_pairs_job_are_shown_the_job_for_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "x.tar", [("a.mp4", b"clip"), ("a.txt", b"one")])
    result = run_job("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "(members: .mp4, .txt): clips are read by jobs/tokenize_videos.py, with another" in line
    flags = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    command = [sys.executable, str(ROOT / "jobs/tokenize_videos.py"), *flags, "--tokenizer", "null"]
    again = subprocess.run(command, env=job_environment(), capture_output=True, text=True, timeout=120)
    assert again.returncode == 2
    line = f"error: output {tmp_path / 'out'}: the folder holds pairs, this job writes videos: choose another"
    assert f"{line} --output\n" in again.stderr


def test_job_info_and_report_tell_the_same_bytes_an_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_shards(tmp_path / "in", 1, 10, bad_every=3)
    result = run_job("--input", str(shards), "--output", str(tmp_path / "out"))
    size = (tmp_path / "out" / "00000.parquet").stat().st_size / 7
    assert f"  {size:,.1f} bytes an image in the folder, with texts, without ledgers" in result.stdout
    assert seed_shards(["info", str(tmp_path / "out")]) == 0
    assert f" {size:,.1f} with texts, without ledgers\n" in capsys.readouterr().out
    page = tmp_path / "report.html"
    assert seed_shards(["report", str(tmp_path / "out"), "--output", str(page)]) == 0
    assert f"{size:,.1f} B" in page.read_text()
    assert "an image, with texts, without ledgers" in page.read_text()


class TestRefusals:
    """One line that names the thing and the remedy; nothing half-written."""

    def test_unknown_flag_and_value(self, shards: Path, tmp_path: Path) -> None:
        for flags in (["--presicion", "bf16"], ["--filter", "cubic"], ["--batch-size", "many"]):
            assert flags[0] in refused("--input", str(shards), "--output", str(tmp_path / "out"), *flags)
        assert not (tmp_path / "out").exists()

    def test_a_mistyped_flag(self) -> None:
        """The nearest flag alone, without its help text."""
        with pytest.raises(ValueError, match=r"--tokenzier, x; did you mean --tokenizer\?$"):
            parse_config(PairsJobConfig, ["--tokenzier", "x", "--input", "a", "--output", "b"])

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--precision", "fp8"], "--precision must be one of fp32, bf16, fp16, got 'fp8'"),
            (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
            (["--max-attempts", "0"], "--max-attempts must be at least 1"),
            (["--stall-timeout", "-1"], "--stall-timeout must be positive"),
            (["--overwrite", "--retry-failed"], "exclude each other"),
            (["--tokenizer", "seed-3"], "tokenizer 'seed-3' not found"),
            (["--output", "nosuch://x/y"], "output nosuch://x/y"),
        ],
    )
    def test_values(self, flags: list[str], message: str, shards: Path, tmp_path: Path) -> None:
        output = [] if "--output" in flags else ["--output", str(tmp_path / "out")]
        assert message in refused("--input", str(shards), *output, *flags)
        assert not (tmp_path / "out").exists()

    def test_an_empty_glob(self, tmp_path: Path) -> None:
        line = refused("--input", str(tmp_path / "*.tar"), "--output", str(tmp_path / "out"))
        assert str(tmp_path / "*.tar") in line

    def test_an_unreadable_tar_fails_alone(self, tmp_path: Path) -> None:
        shards = write_shards(tmp_path / "in", 2, 5)
        (shards / "00002.tar").symlink_to(tmp_path / "nowhere.tar")
        result = run_job("--input", str(shards), "--output", str(tmp_path / "out"), "--max-attempts", "1")
        assert result.returncode == 1
        assert "00002 failed: FileNotFoundError" in result.stderr
        assert "Traceback" not in result.stderr
        assert {"00000.parquet", "00001.parquet"} <= token_files(tmp_path / "out").keys()

    def test_an_output_of_another_tokenizer(self, shards: Path, tmp_path: Path) -> None:
        flags = ["--input", str(shards), "--output", str(tmp_path / "out")]
        assert run_job(*flags).returncode == 0
        before = token_files(tmp_path / "out")
        line = refused(*flags, "--filter", "bilinear")
        assert "preprocessing.filter: bilinear here, bicubic there" in line
        assert "choose another --output" in line
        assert "weights" in refused(*flags, "--tokenizer", "sample")
        assert token_files(tmp_path / "out") == before

    @pytest.mark.parametrize("name", ["mine.parquet", "photo.jpg", "below/photo.jpg"])
    def test_an_output_with_foreign_files(self, name: str, shards: Path, tmp_path: Path) -> None:
        foreign = tmp_path / "out" / name
        foreign.parent.mkdir(parents=True)
        foreign.write_bytes(b"precious")
        with pytest.raises(OutputMismatchError, match=f"1 other file .{name}, .*choose an empty folder"):
            run(shards, tmp_path / "out", num_actors=0)
        assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [foreign]
        foreign.rename(foreign.with_name(".hidden"))
        assert not run(shards, tmp_path / "out", num_actors=0).problems(strict=False)

    def test_an_output_without_a_name(self, shards: Path) -> None:
        with pytest.raises(ValueError, match="the folder is empty; name a folder"):
            run(shards, "", num_actors=0)

    def test_another_input_with_the_same_names(self, shards: Path, tmp_path: Path) -> None:
        assert run_job("--input", str(shards), "--output", str(tmp_path / "out")).returncode == 0
        other = write_shards(tmp_path / "other", 2, 3)
        line = refused("--input", str(other), "--output", str(tmp_path / "out"))
        assert f"was made from {shards}/00000.tar" in line

    def test_another_input_with_the_same_names_and_sizes(self, tmp_path: Path) -> None:
        """Tars are padded: others often have the very size. The same shards elsewhere are the same input."""
        a, b = (
            write_tar(tmp_path / name / "0.tar", pair_members("x", seed)) for seed, name in enumerate("ab")
        )
        assert a.stat().st_size == b.stat().st_size
        output = tmp_path / "out"
        assert not run(a.parent, output, num_actors=0).problems(strict=False)
        with pytest.raises(OutputMismatchError, match=f"was made from {a}, not from {b}"):
            run(b.parent, output, num_actors=0)
        moved = a.parent.rename(tmp_path / "moved")
        assert not run(moved, output, num_actors=0).problems(strict=False)
        shutil.copy(b, moved / "0.tar")
        with pytest.raises(OutputMismatchError, match="other content"):
            run(moved, output, num_actors=0)

    def test_a_source_that_changed_since_and_kept_its_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not among those looked at first, it is named at the end."""
        shards, output = write_shards(tmp_path / "in", 2, 3), tmp_path / "out"
        run(shards, output, num_actors=0)
        data = (shards / "00001.tar").read_bytes()
        (shards / "00001.tar").write_bytes(data.replace(b"caption 4", b"caption X"))
        monkeypatch.setattr("pipeline.token_dataset.NUM_SOURCES_PROBED", 1)
        (problem,) = run(shards, output, num_actors=0).problems(strict=False)
        assert (
            f"00001.tar changed since 00001.parquet was made of it ({len(data)} bytes then and now" in problem
        )

    def test_a_source_that_changed_since(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """At the beginning where it is among those looked at, otherwise at the end; never passed over."""
        shards, output = write_shards(tmp_path / "in", 2, 3), tmp_path / "out"
        assert not run(shards, output, num_actors=0).problems(strict=False)
        before = (shards / "00001.tar").stat().st_size
        write_tar(shards / "00001.tar", [(f"{i}.png", png(i)) for i in range(40)])
        now = (shards / "00001.tar").stat().st_size
        message = f"00001.tar changed since 00001.parquet was made of it ({before} bytes then, {now} now)"
        with pytest.raises(OutputMismatchError, match=re.escape(message)):
            run(shards, output, num_actors=0)
        monkeypatch.setattr("pipeline.token_dataset.NUM_SOURCES_PROBED", 1)  # the first
        (problem,) = run(shards, output, num_actors=0).problems(strict=False)
        assert message in problem
        (output / "00001.parquet").unlink()
        assert not run(shards, output, num_actors=0).problems(strict=False)

    def test_a_tokenizer_that_does_not_fit(self, shards: Path, tmp_path: Path) -> None:
        tokenizer = tmp_path / "tokenizer"
        shutil.copytree(ROOT / "tokenizer" / "sample", tokenizer)
        config = json.loads((tokenizer / "config.json").read_text())
        (tokenizer / "config.json").write_text(json.dumps(config | {"bert_layers": 3}))
        line = refused(
            "--input", str(shards), "--output", str(tmp_path / "out"), "--tokenizer", str(tokenizer)
        )
        assert "does not hold this tokenizer" in line
        assert not (tmp_path / "out").exists()

    def test_an_output_that_is_a_file(self, shards: Path, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("a file")
        assert str(tmp_path / "out") in refused("--input", str(shards), "--output", str(tmp_path / "out"))

    def test_an_output_where_no_folder_can_be(self, shards: Path) -> None:
        """Not for want of permission, which has a message of its own."""
        line = refused("--input", str(shards), "--output", "/proc/tokens")
        assert line.startswith("error: --output /proc/tokens: cannot be written: No such file or directory")

    def test_a_value_that_its_flag_refuses(self, tmp_path: Path) -> None:
        line = refused("--input", "a.tar", "--output", str(tmp_path / "out"), "--batch-size", "0")
        assert line == "error: --batch-size must be at least 1, got 0"

    def test_an_unknown_key_in_the_config_file(self, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_text("inputs: [a.tar]\n")
        line = refused("--config", str(tmp_path / "run.yaml"), "--output", "x")
        assert "inputs: unknown setting; did you mean 'input'?" in line

    def test_a_config_file_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "pairs_8b.yaml").touch()
        line = refused("--config", str(tmp_path / "pair_8b.yaml"))
        assert line.endswith(
            f"pair_8b.yaml: cannot be read: No such file or directory; did you mean "
            f"{tmp_path / 'pairs_8b.yaml'}?"
        )

    def test_a_config_file_that_is_no_yaml(self, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_text("input: [a.tar\noutput: 3\n")
        line = refused("--config", str(tmp_path / "run.yaml"))
        assert line.endswith(
            "run.yaml line 2 column 7: not YAML: expected ',' or ']', but got ':' while parsing"
            " a flow sequence"
        )
        assert line.count("run.yaml") == 1


def test_a_disk_that_is_really_full(shards: Path, tmp_path: Path) -> None:
    """On a file system of 64 KiB, in a namespace of its own: nothing is half-written."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = job_command("--input", str(shards), "--output", str(mount / "out"))
    script = (
        f"mount -t tmpfs -o size=64k none {mount} && head -c 40000 /dev/zero > {mount}/ballast || exit 99; "
        '"$@"; status=$?; find . -name ".tmp-*" | grep . && exit 98; exit $status'
    )
    try:
        result = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *command],
            env=job_environment(), capture_output=True, text=True, timeout=60, cwd=mount,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if result.returncode == 99 or "unshare" in result.stderr:
        pytest.skip(f"needs user namespaces: {result.stderr.strip()}")
    assert result.returncode in (1, 2), result.stderr
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    assert "Permission denied" in refused("--input", str(shards), "--output", str(tmp_path / "out" / "x"))
    assert leftovers(tmp_path) == []

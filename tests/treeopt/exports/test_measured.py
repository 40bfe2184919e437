"""What the engines' own benchmarks write becomes a latency profile; anything else is refused in one line."""

import json

import pytest

from treeopt.exports.measured import main, profile_of
from treeopt.profiles.latency import read_latency
from treespec.errors import ProfileError, SettingsError


def sglang(path, scale):
    """What bench_one_batch appends to its result file, a line for each run."""
    rows = [
        {
            "run_name": "x",
            "batch_size": b,
            "input_len": 256,
            "output_len": 16,
            "median_decode_latency": scale * (10 + b) / 1e3,
            "total_latency": 1.0,
        }
        for b in (1, 2, 4, 8, 6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def llama(path, scale):
    """What llama-bench -o json writes."""
    rows = [
        {
            "build_commit": "x",
            "n_prompt": p,
            "n_gen": g,
            "n_depth": 512,
            "avg_ns": 1,
            "samples_ns": [scale * 1e6 * (p + g), scale * 1e6 * (p + g) + 1],
        }
        for p, g in ((1, 0), (4, 0), (8, 0), (0, 128))
    ]
    path.write_text(json.dumps(rows))
    return path


def vllm(folder, scale):
    """What vllm bench latency --output-json writes, two lengths for each batch."""
    files = []
    for batch in (1, 2, 4):
        for length in (16, 80):
            took = scale * (0.5 + length * (0.01 + 0.001 * batch))
            files.append(folder / f"{batch}-256-{length}.json")
            files[-1].write_text(
                json.dumps({"avg_latency": took, "latencies": [took, 1.1 * took, 0.9 * took], "percentiles": {"50": took}})
            )
    return files


def test_sglang(tmp_path):
    found = profile_of("sglang", [sglang(tmp_path / "t", 1)], [sglang(tmp_path / "d", 0.1)], batch=2, overhead=0.001)
    assert (found.engine, found.batch, found.overhead_seconds) == ("sglang", 2, (0.001,))
    assert [(sample.nodes, sample.context, sample.seconds) for sample in found.target] == [
        (1, 256, (0.012,)),
        (2, 256, (0.014,)),
        (3, 256, (0.016,)),
        (4, 256, (0.018,)),
    ]
    assert found.draft[0].seconds == pytest.approx((0.0012,))


def test_vllm(tmp_path):
    for name in ("t", "d"):
        (tmp_path / name).mkdir()
    found = profile_of("vllm", vllm(tmp_path / "t", 1), vllm(tmp_path / "d", 0.5))
    assert [sample.nodes for sample in found.target] == [1, 2, 4]
    assert [sample.median_seconds for sample in found.target] == pytest.approx([0.011, 0.012, 0.014])


def test_llama_cpp(tmp_path):
    found = profile_of("llama.cpp", [llama(tmp_path / "t", 1)], [llama(tmp_path / "d", 1)])
    assert [(sample.nodes, sample.context) for sample in found.target] == [(1, 512), (4, 512), (8, 512)]
    assert found.target[1].seconds == pytest.approx((0.004, 0.004), abs=1e-8)


def test_the_script_writes_a_profile(tmp_path):
    files = [str(sglang(tmp_path / name, 1)) for name in ("t", "d")]
    main(["sglang", "--target", files[0], "--draft", files[1], "--batch", "4", "-o", str(tmp_path / "l.json")])
    assert read_latency(tmp_path / "l.json").batch == 4


@pytest.mark.parametrize(
    ("engine", "text", "words"),
    [
        ("sglang", "no json", "is not the output of that benchmark"),
        ("sglang", "[" * 100_000, "is not the output of that benchmark"),
        ("sglang", '{"batch_size": 1, "input_len": 2}', "has an entry without median_decode_latency"),
        ("sglang", '{"batch_size": 1, "input_len": 2, "median_decode_latency": -1}', "median_decode_latency that cannot be"),
        ("sglang", "", "target: the benchmark's output holds no pass; run"),
        ("llama.cpp", "[]", "target: the benchmark's output holds no pass; run"),
        ("llama.cpp", '{"n_prompt": 1}', "is not the output of that benchmark"),
        ("vllm", "{}", "does not say what was run; name it BATCH-INPUT-OUTPUT.json"),
        ("mlc", "", "engine is 'mlc', but it must be one of sglang"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, engine, text, words):
    (tmp_path / "x").write_text(text)
    with pytest.raises(ProfileError) as caught:
        profile_of(engine, [tmp_path / "x"], [tmp_path / "x"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_length_is_not_enough(tmp_path):
    (tmp_path / "1-8-16.json").write_text('{"latencies": [1.0]}')
    with pytest.raises(ProfileError, match="was run for one output length only"):
        profile_of("vllm", [tmp_path / "1-8-16.json"], [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("foo", "argument ENGINE: it is 'foo', but it must be one of sglang, vllm, llama.cpp"),
        ("", "the following arguments are required: ENGINE, --target, --draft, -o/--output"),
        ("vllm --target", "argument --target: expected at least one argument"),
        ("vllm --target t --draft d", "the following arguments are required: -o/--output"),
        *(
            (f"vllm --batch {batch}", f"argument --batch: it is '{batch}', but it counts sequences: pass a whole number of 1 or more")
            for batch in ("0", "-1", "2.5", "q")
        ),
        *(
            (f"vllm --overhead={time}", f"argument --overhead: it is '{time}', but it must be a number of seconds, such as 0.001")
            for time in ("-1", "nan", "inf", "q")
        ),
        ("vllm --target t --draft d -o o --odd=\x1b", r"unrecognized arguments: --odd=\x1b"),
    ],
)
def test_wrong_usage_is_told_in_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words.split(" ") if words else [])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {said} (python -m treeopt.exports.measured --help says more)\n")


@pytest.mark.parametrize("batch", [0, -1, 1.0])
def test_a_batch_size_counts_sequences(tmp_path, batch):
    with pytest.raises(SettingsError, match=f"`batch` is {batch!r}, but it must be "):
        profile_of("sglang", [sglang(tmp_path / "t", 1)], [sglang(tmp_path / "d", 0.1)], batch=batch)

"""Models, tokenizers and pairs come from folders; whatever is wrong with them is said in one line."""

import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import PreTrainedModel

from treespec import hub
from treespec.errors import ModelError, SettingsError
from treespec.files import provenance
from treespec.models import loading
from treespec.models.drafts import recorded_name
from treespec.models.loaded import LoadedModel
from treespec.models.loading import load_model, load_tokenizer
from treespec.models.locating import EMBEDDED, weights_digest
from treespec.models.offload import host_memory
from treespec.models.offload.streaming import streamed_bytes
from treespec.models.pairs import load_pair, load_target
from treespec.models.tree_model import TreeModel

Build = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_module: Build, tokenizer_into: Callable[..., None]) -> Path:
    """Folders `target` and `draft` (one vocabulary), `padded` (more rows), `other` (another tokenizer), `mute` (none)."""
    root = tmp_path_factory.mktemp("models")
    for name, rows, prefix in (("target", 97, "w"), ("draft", 97, "w"), ("padded", 112, "w"), ("other", 97, "v"), ("mute", 97, None)):
        tiny_module("llama", seed=len(name), vocab_size=rows).save_pretrained(root / name)
        if prefix:
            tokenizer_into(root / name, prefix)
    return root


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nobody listens, and libraries that would ask it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_folder_loads_in_eval_mode_and_float32_on_the_cpu(saved: Path) -> None:
    module = load_model(str(saved / "target")).module
    assert module.dtype == torch.float32
    assert not module.training
    assert load_model(str(saved / "target"), dtype="bfloat16").module.dtype == torch.bfloat16


def test_loaded_weights_are_the_saved_ones(saved: Path, tiny_module: Build) -> None:
    wanted = tiny_module("llama", seed=len("target"), vocab_size=97).state_dict()
    got = load_model(str(saved / "target")).module.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_half_precision_checkpoints_are_widened_on_the_cpu(saved: Path, tmp_path: Path, tiny_module: Build) -> None:
    tiny_module("llama").to(torch.float16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).module.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(
    ("own", "wanted"), [(torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)]
)
def test_auto_dtype_on_cuda_is_the_checkpoints_own_half(own: torch.dtype, wanted: torch.dtype, tmp_path: Path, tiny_module: Build) -> None:
    tiny_module("llama").to(own).save_pretrained(tmp_path)
    module = load_model(str(tmp_path), device="cuda").module
    assert (module.dtype, module.device.type) == (wanted, "cuda")


def test_a_pair_is_described(saved: Path) -> None:
    pair = load_pair(str(saved / "target"), str(saved / "draft"))
    assert pair.eos_token_ids == {2}, "the generation config's, whatever the tokenizer's is"
    record = pair.describe()
    assert json.loads(json.dumps(record)) == record
    assert record["target"]["family"] == "llama"
    assert record["target"]["parameters"] == sum(p.numel() for p in pair.target.module.parameters())
    assert (record["device"], record["dtype"], record["vocabulary_size"]) == ("cpu", "float32", 97)


def test_models_on_the_cpu_are_not_said_to_be_on_a_gpu(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_gpu", lambda: ("NVIDIA X", "580"))
    record = load_target(str(saved / "target")).provenance(seed=3)
    assert (record["gpu"], record["driver"], record["seed"]) == (None, None, 3)
    assert record["cpu"] == provenance.processor()


def test_other_weights_of_the_same_shapes_are_told_apart(saved: Path, tmp_path: Path) -> None:
    """So that a run is not resumed with another model than it was begun with."""
    for name in ("a", "b", "copy"):
        shutil.copytree(saved / "target", tmp_path / name)
    module = load_model(str(tmp_path / "b")).module
    with torch.no_grad():
        module.get_output_embeddings().weight[3, 5] += 1.0
    module.save_pretrained(tmp_path / "b")
    digests = {name: weights_digest(str(tmp_path / name)) for name in ("a", "b", "copy")}
    assert digests["a"] == digests["copy"] != digests["b"]
    described = {name: load_target(str(tmp_path / name)).describe()["target"]["weights"] for name in digests}
    assert described == digests
    assert weights_digest("someone/model") is None


def test_what_is_known_of_a_model_comes_with_it_and_not_on_it(saved: Path) -> None:
    name = str(saved / "target")
    loaded = load_model(name)
    assert (loaded.digest, loaded.revision, loaded.streamed) == (weights_digest(name), None, 0)
    assert not [key for part in loaded.module.modules() for key in vars(part) if "treespec" in key]
    assert LoadedModel.of(loaded) is loaded
    loaded.module.config._commit_hash = "c0ffee"
    made = LoadedModel.of(loaded.module)
    assert (made.module, made.digest, made.revision) == (loaded.module, None, "c0ffee")
    assert recorded_name(TreeModel(made, name="a/b")) == "a/b@c0ffee"


def test_a_target_alone_is_a_pair_without_draft(saved: Path) -> None:
    pair = load_target(str(saved / "target"))
    assert list(pair.models) == ["target"]
    assert pair.describe()["draft"] is None


def test_other_vocabularies_are_refused(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"different vocabularies, first at id 1 \('[vw]1'\)"):
        load_pair(str(saved / "target"), str(saved / "other"))


def test_padded_rows_of_a_draft_are_cut_to_the_targets(saved: Path) -> None:
    pair = load_pair(str(saved / "target"), str(saved / "padded"))
    assert pair.target.vocabulary_size == pair.draft.vocabulary_size == 97
    ids = torch.arange(5)[None]
    with torch.no_grad():
        wanted = pair.draft.module(input_ids=ids).logits
    assert wanted.shape[-1] == 112
    assert torch.allclose(pair.draft.score(ids), wanted[..., :97], atol=1e-6)


def test_models_without_tokenizers_pair_by_their_rows(saved: Path, tmp_path: Path, tiny_module: Build) -> None:
    pair = load_pair(str(saved / "mute"), str(saved / "mute"))
    assert pair.tokenizer is None
    assert pair.eos_token_ids == {2}
    tiny_module("llama", vocab_size=50).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="97 logits.* 50.*without both tokenizers"):
        load_pair(str(saved / "mute"), str(tmp_path))


def test_a_tokenizer_is_loaded_or_missed(saved: Path) -> None:
    assert load_tokenizer(str(saved / "target")).encode("w5 w7") == [5, 7]
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(str(saved / "mute"))


def _edited(saved: Path, tmp_path: Path, edit: Callable[[Path], object]) -> str:
    folder = tmp_path / "edited"
    shutil.copytree(saved / "target", folder)
    edit(folder)
    return str(folder)


def _config(**changes: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return edit


def _half_file(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json; give a folder"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "holds no model.safetensors, no pytorch_model.bin, no index of one in parts and no GGUF file; save",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "consolidated.00.pth"),
            r"\(only consolidated.00.pth\); save",
        ),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin is no file of torch.save"),
        (_half_file, "cannot be loaded: model.safetensors is damaged: '.*' ends behind the end of the file .5000 bytes.; save or download"),
        (_config(num_hidden_layers=3), "asks for 3 layers .num_hidden_layers., but the weights hold 2"),
        (_config(attention_bias=True), "weights are missing"),
        (_config(hidden_size=64), r"lm_head.weight has the shape \[97, 48\], but config.json asks for \[97, 64\] \(21 weights differ\)"),
        (_config(hidden_size="abc"), "hidden_size is 'abc', but it must be a whole number, 1 or more; correct its configuration"),
        (_config(num_attention_heads=0), "num_attention_heads is 0, but it must be a whole number, 1 or more"),
        (_config(num_hidden_layers=-1), "num_hidden_layers is -1, but it must be a whole number, 1 or more"),
        (_config(pad_token_id=500), "config.json: AssertionError: "),
        (_config(model_type="never_heard_of"), "has the model_type 'never_heard_of', which transformers .* does not know; use a version"),
        (_config(model_type="never_heard_of", auto_map={"AutoConfig": "code.Config"}), "which is never run|cannot be loaded"),
        (_config(model_type="mamba"), "mamba.*running state"),
    ],
)
def test_damaged_folders(edit: Callable[[Path], object], message: str, saved: Path, tmp_path: Path) -> None:
    name = _edited(saved, tmp_path, edit)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"added_tokens": [], "model": {"type": "Never"}}'])
def test_a_broken_tokenizer_is_one_line(content: str, saved: Path, tmp_path: Path) -> None:
    name = _edited(saved, tmp_path, lambda folder: (folder / "tokenizer.json").write_text(content))
    with pytest.raises(
        ModelError, match=f"^{name} cannot be loaded: (its tokenizer: .*; correct that, or save|tokenizer.json is empty; copy)"
    ) as caught:
        load_tokenizer(name)
    assert "\n" not in str(caught.value)


def test_an_empty_name_is_told_so() -> None:
    with pytest.raises(ModelError, match="the name of a model is empty; give a folder, a hub id"):
        load_model("")


@pytest.mark.parametrize("name", ["./nowhere", "../a/b", "/no/such/folder", "~/no-such-model", "a/b/c", "nowhere/"])
def test_paths_that_lead_nowhere_never_reach_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_reachable", lambda: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match=r"no folder|no config\.json"):
        load_model(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(ModelError, match="is a file; give the folder"):
        load_model(str(tmp_path / "weights.safetensors"))


def test_an_embedded_pair_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDED, "embedded-target", tmp_path / "target")
    with pytest.raises(ModelError, match=r"embedded-target is not in this installation.* treeopt\.training\.embedded_pair"):
        load_model("embedded-target")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "'gpu' is not a name that torch knows; pass cuda"),
        ({"device": "meta"}, "'meta' is not one of cpu, cuda, cuda:N, mps, xpu or xpu:N"),
        ({"dtype": "int8"}, 'dtype is "int8".*float32, float16, bfloat16'),
        pytest.param(
            {"device": "cuda"},
            "no CUDA GPU; use `device` cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA GPU"),
        ),
    ],
)
def test_bad_options(options: dict[str, str], message: str, saved: Path) -> None:
    with pytest.raises((ModelError, SettingsError), match=message):
        load_model(str(saved / "target"), **options)


def test_an_unreachable_hub_is_told_within_five_seconds() -> None:
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"hub .* cannot be reached.* give a local folder"):
        load_pair("JackFram/llama-68m", "JackFram/llama-68m")
    assert time.perf_counter() - start < 5


@pytest.mark.slow
def test_an_unreachable_hub_in_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import time; from treespec.models.loading import load_model; start = time.perf_counter()\n"
        "try: load_model('JackFram/llama-68m')\n"
        "except Exception as error: print(type(error).__name__, time.perf_counter() - start < 5)"
    )
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["ModelError", "True"]


class _Hub(http.server.BaseHTTPRequestHandler):
    """A hub in small: `team/gated` is gated, `team/nowhere` does not exist, revision `none` neither."""

    def do_HEAD(self) -> None:
        if "/team/gated/" in self.path:
            status, code = 403, "GatedRepo"
        elif "/none/" in self.path:
            status, code = 404, "RevisionNotFound"
        else:
            status, code = (200, "") if self.path == "/" else (404, "RepoNotFound")
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815 - the name that http.server calls

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""


@pytest.fixture
def small_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        address = f"http://127.0.0.1:{running.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        yield
        running.shutdown()
        thread.join()


@pytest.mark.usefixtures("small_hub")
@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("team/gated", None, "gated on the hub: accept its terms"),
        ("team/nowhere", None, "neither a local folder nor a model on the hub"),
        ("team/model", "none", "no revision none"),
    ],
)
def test_what_the_hub_says_is_passed_on(name: str, revision: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name, revision=revision)


def test_offloading_needs_a_gpu(saved: Path) -> None:
    for load in (load_model, load_target):
        with pytest.raises(SettingsError, match="to a CUDA GPU, but the device is cpu; drop `offload`"):
            load(str(saved / "target"), offload=True)


@pytest.fixture
def _streams_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets offloaded models be loaded here."""
    monkeypatch.setattr(loading, "_device", lambda device, offload=False: torch.device("cpu"))


@pytest.mark.usefixtures("_streams_on_the_cpu")
def test_the_target_of_a_pair_is_offloaded_and_says_so(saved: Path) -> None:
    plain = load_pair(str(saved / "target"), str(saved / "draft"))
    pair = load_pair(str(saved / "target"), str(saved / "draft"), offload=True)
    assert streamed_bytes(pair.target.module) > 0
    assert streamed_bytes(pair.draft.module) == 0
    record = pair.describe()
    assert (record["target"]["offloaded"], record["draft"]["offloaded"]) == (True, False)
    assert record["target"]["parameters"] == plain.describe()["target"]["parameters"]
    assert (pair.provenance()["offloaded"], plain.provenance()["offloaded"]) == (True, False)
    ids = torch.arange(9)[None]
    for _ in range(2):
        assert torch.equal(pair.target.score(ids), plain.target.score(ids))


@pytest.mark.usefixtures("_streams_on_the_cpu")
def test_weights_larger_than_the_host_are_refused_before_they_are_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(p.nbytes for p in load_model(str(saved / "target"), dtype="float16").module.parameters())
    monkeypatch.setattr(host_memory, "available_bytes", lambda: needed - 1)
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *arguments, **others: pytest.fail("read weights"))
    with pytest.raises(ModelError, match=r"of host memory to be streamed from.*are available"):
        load_model(str(saved / "target"), dtype="float16", offload=True)
    monkeypatch.setattr(host_memory, "available_bytes", lambda: needed)
    with pytest.raises(pytest.fail.Exception, match="read weights"):
        load_model(str(saved / "target"), dtype="float16", offload=True)


@pytest.mark.gpu
def test_an_offloaded_model_is_never_on_the_gpu_all_at_once(tmp_path: Path, tiny_module: Build) -> None:
    shape = {"num_hidden_layers": 8, "hidden_size": 640, "intermediate_size": 1792, "num_attention_heads": 8}
    module = tiny_module("llama", **shape)
    module.save_pretrained(tmp_path)
    layer = sum(p.nbytes for p in module.model.layers[0].parameters())
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    load_model(str(tmp_path), device="cuda", dtype="float32", offload=True)
    assert torch.cuda.max_memory_allocated() - before < 3 * layer


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
        RuntimeError("unable to mmap 1024 bytes from file: Cannot allocate memory (12)"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_full_memory_is_told_in_words(error: Exception, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **others: object) -> None:
        raise error

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError, match="memory is full while .*target is loaded .*; use a smaller model or `dtype`"):
        load_model(str(saved / "target"))

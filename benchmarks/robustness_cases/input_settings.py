"""Bad settings: overrides, options, numbers, URLs, environments, YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.robustness_cases.fixtures import Fixtures
from benchmarks.robustness_cases.inputs import BadInput

_TRAIN = "train jomold data={tiny} output={here}/out {small}"
_HUGE = str(2**70)

# override -> what the output must name
OVERRIDES = {
    "seed=-1": "seed",
    f"seed={_HUGE}": "seed",
    f"seed={2**64}": "seed",
    "seed=1.5": "seed",
    "seed=nan": "seed",
    "seed=zero": "seed",
    "optim.lr=inf": r"optim\.lr",
    "optim.lr=nan": r"optim\.lr",
    "optim.lr=-1": r"optim\.lr",
    "optim.lr=0": r"optim\.lr",
    "optim.lr=1e400": r"optim\.lr",
    "optim.lr=fast": r"optim\.lr",
    "optim.weight_decay=inf": r"optim\.weight_decay",
    "optim.weight_decay=-0.1": r"optim\.weight_decay",
    "optim.betas=[0.9,1.0]": r"optim\.betas",
    "optim.betas=[0.9]": r"optim\.betas",
    "optim.step_size=0": r"optim\.step_size",
    "optim.gamma=nan": r"optim\.gamma",
    "optim.clip_norm=inf": r"optim\.clip_norm",
    "optim.clip_norm=nan": r"optim\.clip_norm",
    "optim.warmup_epochs=3": "warmup_epochs",
    "train.epochs=0": r"train\.epochs",
    "train.epochs=-1": r"train\.epochs",
    "train.epochs=2.5": r"train\.epochs",
    "train.epochs=inf": r"train\.epochs",
    "train.batch_size=0": r"train\.batch_size",
    "train.batch_size=nan": r"train\.batch_size",
    "train.precision=float8": r"train\.precision",
    "train.device=gpu": r"train\.device",
    "train.device=cuda:99": "cuda",
    "train.check_every=0": r"train\.check_every",
    "task=nosuch": "nosuch",
    "task.segment_threshold=2": r"task\.segment_threshold",
    "task.segment_threshold=nan": r"task\.segment_threshold",
    "evaluate.segment_threshold=2": r"task\.segment_threshold",
    "evaluate.select=segment.tpye": r"evaluate\.select",
    "evaluate.batch_size=-5": r"evaluate\.batch_size",
    "model=nosuch": "nosuch",
    "model.width=0": r"model\.width",
    "model.width=inf": r"model\.width",
    "model.heads=3": "heads",
    "model.dropout=1": r"model\.dropout",
    "model.dropout=nan": r"model\.dropout",
    "method=nosuch": "nosuch",
    "method.audio_threshold=inf": r"method\.audio_threshold",
    "method.audio_threshold=nan": r"method\.audio_threshold",
    "method.visual_target=1.1": r"method\.visual_target",
    "method.warmup_epochs=inf": r"method\.warmup_epochs",
    "method.temperature=0": r"method\.temperature",
    "method.temperature=nan": r"method\.temperature",
    "method.audio_weight=inf": r"method\.audio_weight",
    "method.contrastive_weight=nan": r"method\.contrastive_weight",
    "method.rounding=up": r"method\.rounding",
    "method.ratios=[1,2]": r"method\.ratios",
    "data.mode=memory": r"data\.mode",
    "data.memory_gb=nan": r"data\.memory_gb",
    "data.memory_gb=0": r"data\.memory_gb",
    "data.cache_gb=inf": r"data\.cache_gb",
    "data.streams=0": r"data\.streams",
    "data.window=0": r"data\.window",
    "data.workers=-1": r"data\.workers",
    "data.prefetch=0": r"data\.prefetch",
    "data.cache=s3://bucket/cache": r"data\.cache",
    "data.on_bad=ignore": r"data\.on_bad",
    "data.dataset=audioset": "audioset",
    "data.url=": "data",
    "output=": "output",
    "launch=slurm": "slurm",
    "launch.workers=0": r"launch\.workers",
    "launch.workers=2": r"launch\.workers",
    "launch.workers=two": r"launch\.workers",
    "launch.min_workers=1": "min_workers",
    "launch.cpus_per_worker=inf": r"launch\.cpus_per_worker",
    "launch.gpus_per_worker=nan": r"launch\.gpus_per_worker",
    "launch.max_failures=-2": r"launch\.max_failures",
    "launch.resize_every=nan": r"launch\.resize_every",
    "tracking=wandb": "wandb",
    "tracking.flush_timeout=nan": r"tracking\.flush_timeout",
    "tracking.flush_timeout=-1": r"tracking\.flush_timeout",
    "tracking.tags=[a]": r"tracking\.tags",
    "storage.retries=-1": r"storage\.retries",
    "storage.endpoint=server:9000": r"storage\.endpoint",
    "storage.read_timeout=inf": r"storage\.read_timeout",
    "storage.addressing=host": r"storage\.addressing",
    "storage.key=abc": "credentials",
    "optim.lrr=1": r"optim\.lrr",
    "optimm.lr=1": "optimm",
    "data.foo.bar=1": r"data\.foo",
    "optim.lr.x=3": r"optim\.lr",
    "optim=3": "optim",
    "model=[1]": "model",
    "recipe={}": "recipe",
    "optim.lr": r"optim\.lr",
    "=3": "=3",
    "optim..lr=3": "lr",
    "optim.lr=[1": r"optim\.lr",
    "optim.lr={a": r"optim\.lr",
    "optim.lr=!!python/object/apply:os.system [id]": r"optim\.lr",
    "optim.lr=*anchor": r"optim\.lr",
    "seed=" + "9" * 5000: "seed",
    "tracking.tags.x=" + "[" * 3000: r"tracking\.tags\.x",
}

_BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
_MERGE_BOMB = "a0: &a0 {k: x}\n" + "".join(
    f"a{level}: &a{level} {{l: *a{level - 1}, r: *a{level - 1}}}\n" for level in range(1, 40)
)
YAML = {
    "bomb": (_BOMB, "alias|bomb|large|many"),
    "merge bomb": (_MERGE_BOMB, "alias|bomb|large|many"),
    "deep": ("[" * 20_000 + "]" * 20_000, "deep|nest|level"),
    "deep mapping": ("".join(f"{' ' * depth}a:\n" for depth in range(600)), "deep|nest|level"),
    "cyclic": ("model: &m\n  name: han\n  self: *m\n", "cycl|itself|recurs|alias"),
    "cyclic list": ("a: &a [*a]\n", "cycl|itself|recurs|alias"),
    "latin-1": ("title: Stra\xdfe\nrecipe: han\n".encode("latin-1"), "UTF-8"),
    "utf-16": ("recipe: han\n".encode("utf-16"), "UTF-8|key"),
    "nul": (b"recipe: han\0\nseed: 1\n", "character|YAML"),
    "control": (b"recipe: \x1b[31mred\n", "character|YAML"),
    "list": ("- a\n- b\n", "list|keys"),
    "scalar": ("42\n", "int|keys"),
    "syntax": ("model: {name: han\nseed: [1\n", "YAML"),
    "tabs": ("model:\n\tname: han\n", "YAML"),
    "object": ("model: !!python/object/apply:os.system [id]\n", "YAML|tag"),
    "key": ("? [a, b]\n: 1\n", "key|YAML"),
    "number keys": ("1: 2\n3: 4\n", "key|1"),
    "twice": ("seed: 1\nseed: 2\nmodel: nosuch\n", "seed|model"),
    "large": ("x: '" + "y" * 3_000_000 + "'\n", "characters; at most"),
    "markup": ("'[/red]': '[bold]'\n", r"\[/red\]"),
    "documents": ("seed: 1\n---\nseed: 2\n", "document|YAML"),
}
_EVERYWHERE = ("bomb", "merge bomb", "deep", "cyclic", "latin-1", "list")
_READERS = {
    "config": "config {here}/file.yaml",
    "train": "train {here}/file.yaml data={tiny} output={here}/out",
    "sweep": "sweep {here}/file.yaml data={tiny} --dry-run --output {here}/out",
    "table": "table {here}/file.yaml --data {tiny} --output {here}/out",
}

URLS = {
    "s3://": "s3://",
    "s3:///": "s3://",
    "foo://bar": "foo",
    "http://": "http",
    "s3://user:password@bucket/x": "credentials",
    "://x": "://|scheme|protocol|URL|not",
    "memory://x": "memory|not|no |missing",
    "\x1b[31mred": r"not|no |missing|character",
    "[/red]": r"/red",
    "x" * 5000: "long|name|not|missing",
}
_URL_PLACES = {
    "data": "train han data=URL output={here}/out {small}",
    "refined": "train han data={tiny} data.refined=URL output={here}/out {small}",
    "ratios": "train jomold data={tiny} method.ratios=URL output={here}/out {small}",
    "inspect": "data inspect URL",
    "verify": "data verify URL --workers 1",
    "evaluate": "evaluate URL",
    "compare": "compare URL",
    "sync": "sync URL",
}

TRACKING = {
    "foo://bar": "foo",
    "mysql://": "mysql",
    "./mlruns": "mlruns",
    "file:///tmp/mlruns": "file",
    "sqlite:///{here}/text.db": r"text\.db",
    "sqlite:///{here}/folder": "folder",
    "sqlite:////proc/nothing/mlflow.db": "/proc",
    "http://": "http",
    "http://host:notaport": "port|host",
    "": r"tracking\.uri",
    "[1,2]": r"tracking\.uri",
}

ENVIRONMENTS: tuple[tuple[str, dict[str, str | None], str, str], ...] = (
    ("WORLD_SIZE alone", {"WORLD_SIZE": "2"}, _TRAIN, "WORLD_SIZE"),
    ("WORLD_SIZE no number", {"WORLD_SIZE": "many"}, _TRAIN, "WORLD_SIZE"),
    ("RANK no number", {"RANK": "first"}, _TRAIN, "RANK"),
    ("RANK beyond", {"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, _TRAIN, "RANK|rank"),
    (
        "MASTER_ADDR alone is missing",
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29511"},
        _TRAIN,
        "MASTER_ADDR|launcher",
    ),
    ("bad endpoint", {"AWS_ENDPOINT_URL": "nowhere"}, "data inspect s3://bucket/x", "AWS_ENDPOINT_URL|endpoint"),
    ("closed endpoint", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "data inspect s3://bucket/x", "127.0.0.1:9"),
    ("no credentials", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "evaluate s3://bucket/x", "127.0.0.1:9"),
    ("RAY_ADDRESS nowhere", {"RAY_ADDRESS": "127.0.0.1:9"}, f"{_TRAIN} launch=ray", "RAY_ADDRESS"),
    ("MLFLOW_TRACKING_URI", {"MLFLOW_TRACKING_URI": "foo://x"}, _TRAIN.replace("{small}", "train.epochs=1"), "foo"),
)

OPTIONS = {
    "train": "recipe",
    "train nosuch data={tiny}": "nosuch",
    "train hann data={tiny}": "han",
    "train jomold": "data",
    "train jomold data=": "data",
    "train {here}/none.yaml": "none.yaml",
    "evaluate": "run",
    "evaluate {here}": "config.yaml|finished",
    "evaluate {run} data={here}": "index.json|data",
    "evaluate {run} model.width=8": "fit|width",
    "evaluate {run} model=ave-llp": "fit|model|network",
    "evaluate {run} method=nosuch": "method",
    "evaluate {run} train.device=cuda": "cuda",
    "compare": "runs",
    "compare {here}": "result.json",
    "compare {run} {here}/none": "none",
    "compare {run} --metric segment.tpye": "segment.tpye",
    "compare {run} --view nosuch": "nosuch",
    "compare {run} --group nosuch": "nosuch",
    "compare {run} --baseline nosuch": "nosuch",
    "compare {run} --split train": "split",
    "compare {run} --select --split test": "select",
    "compare --sweep {here}": "no finished run|sweep",
    "compare --sweep {here}/none": "none",
    "sweep": "name",
    "sweep nosuch": "nosuch",
    "sweep jomold-denoising --resume {here}": "resume|name",
    "sweep --resume {here}": "sweep.json",
    "sweep jomold-denoising --dry-run": "data",
    "sweep jomold-denoising data={tiny} --seeds 1,x --dry-run": "seeds",
    "sweep jomold-denoising data={tiny} --seeds 1,1 --dry-run": "seeds",
    "sweep jomold-denoising data={tiny} seed=3 --dry-run": "seed",
    "sweep jomold-denoising data={tiny} output=x --dry-run": "output",
    "sweep jomold-denoising data={tiny} optim.lr=inf --dry-run": "optim.lr",
    "sweep jomold-denoising data={tiny} --hours nan --dry-run": "hours",
    "sweep jomold-denoising data={tiny} --cpus inf --dry-run": "cpus",
    f"sweep jomold-denoising data={{tiny}} --seeds {_HUGE} --dry-run": "seed",
    "table": "table|main",
    "table nosuch": "nosuch",
    "table main --data {here} --output {here}/out": "index.json",
    "table main --data {tiny} --seeds x": "seeds",
    "table main --data {tiny} --seeds 1,1": "seeds",
    "table main --videos 1,2 --output {here}/out": "videos",
    "table main --videos -5 --output {here}/out": "videos",
    "table main --data {tiny} --videos 5": "videos",
    "table main --data {tiny} --set output=x": "output",
    "table main --data {tiny} --set optim.lr=nan --output {here}/out": "optim.lr",
    "data pack avs --annotations {raw} --features {raw} --out {here}/out": "avs",
    "data pack llp --annotations {here} --features {raw} --out {here}/out": "AVVP_train.csv",
    "data pack llp --annotations {raw} --features {here} --out {here}/out": "vggish",
    "data pack llp --annotations {raw} --features {raw} --out {here}/out --streams clip-clap": "CLAP",
    "data pack llp --annotations {raw} --features {raw} --out {here}/out --shard-videos 0": "shard-videos",
    "data pack llp --annotations {raw} --features {raw} --out {here}/out --workers 0": "workers",
    "data pack llp launch=slurm --annotations {raw} --features {raw} --out {here}/out": "slurm",
    "data pack llp --annotations {raw} --features {raw} --out {tiny}": "tiny|another|other",
    "data check llp --annotations {here}": "AVVP_train.csv",
    "data check nosuch --annotations {raw}": "nosuch",
    "data check llp --annotations {raw} --features {here}": "vggish",
    "data synth {here}/out --splits 1,2": "splits",
    "data synth {here}/out --splits 0,0,0": "splits|videos|train",
    "data synth {here}/out --splits -1,2,3": "splits|videos",
    "data synth {here}/out --videos -1": "videos",
    "data synth {here}/out --videos 0": "videos",
    "data synth {here}/out --videos 5 --splits 1,2,3": "splits|videos",
    "data synth {here}/out --videos 5 --seed -1": "seed",
    f"data synth {{here}}/out --videos 5 --seed {_HUGE}": "seed",
    "data synth {here}/out --annotations {here}": "AVVP_train.csv",
    "data inspect {here}": "index.json|packed",
    "data inspect {here}/none": "none",
    "data verify {here} --workers 1": "index.json|packed",
    "data verify {tiny} --workers 0": "workers",
    "data labels --data {here} --audio {audio} --visual {visual} --out {here}/l.npz": "index.json|packed",
    "data labels --data {data} --audio {here} --visual {visual} --out {here}/l.npz": ".npy|missing|label",
    "data labels --data {data} --audio {audio} --visual {visual} --split nosuch --out {here}/l.npz": "nosuch",
    "data noisy-labels --data {data} --flip 2 --out {here}/l.npz": "flip",
    "data noisy-labels --data {data} --flip nan --out {here}/l.npz": "flip",
    "data noisy-labels --data {data} --seed -1 --out {here}/l.npz": "seed",
    f"data noisy-labels --data {{data}} --seed {_HUGE} --out {{here}}/l.npz": "seed",
    "config nosuch": "nosuch",
    "config jomold optim.lr=nan": "optim.lr",
    "sync {here}": "track",
    "sync {here}/none": "none",
    "doctor data={here}/none output={here}/out tracking=none": "none",
    "doctor foo=1": "foo",
    "doctor data": "data",
    "doctor storage.endpoint=x": "endpoint",
    "cache info --storage endpoint=x": "endpoint|option",
    "frobnicate": "frobnicate",
    "train jomold --frobnicate": "frobnicate",
}
_OTHER_CODES = {  # documented: doctor and sync end with exit code 1 if a check or sending fails
    "doctor data={here}/none output={here}/out tracking=none": (1, 2),
}


def _file(content: str | bytes) -> tuple:
    data = content.encode() if isinstance(content, str) else content
    return (lambda here, _: (here / "file.yaml").write_bytes(data),)


def _databases(here: Path, _: Fixtures) -> None:
    (here / "text.db").write_text("not a database\n" * 300)
    (here / "folder").mkdir()


def cases() -> Iterator[BadInput]:
    """Yield all cases of this module."""
    for override, expects in OVERRIDES.items():
        yield BadInput("settings", [*_TRAIN.split(" "), override], expects)
    for name, (content, expects) in YAML.items():
        for command, words in _READERS.items():
            if command != "config" and name not in _EVERYWHERE:
                continue
            also = "|file.yaml" if command in ("sweep", "table") else ""  # other keys are missing as well
            yield BadInput(f"YAML, {command}", words, expects + also, prepare=_file(content), seconds=10, note=name)
    for url, expects in URLS.items():
        for words in _URL_PLACES.values():
            yield BadInput("URLs", [word.replace("URL", url) for word in words.split(" ")], expects)
    for url in ("s3://", "foo://bar", "/proc/nothing/x", "s3://user:password@bucket/x", "http://127.0.0.1:9/x"):
        expects = url.split("/")[0] + "|credentials|/proc"
        words = ["train", "han", "data={tiny}", "{small}"]
        yield BadInput("URLs", [*words, f"output={url}"], expects)
        yield BadInput("URLs", [*words, "output={here}/out", f"store={url}"], expects)
        yield BadInput("URLs", ["data", "synth", url, "--videos", "9", "--layout", "shards", "--workers", "1"], expects)
        pack = ["data", "pack", "llp", "--annotations", "{raw}", "--features", "{raw}", "--workers", "1"]
        yield BadInput("URLs", [*pack, "--out", url], expects)
    untracked = _TRAIN.replace("{small}", "train.epochs=1 model.width=8 model.feedforward=8 train.device=cpu")
    for uri, expects in TRACKING.items():
        words = [*untracked.split(" "), f"tracking.uri={uri}", "tracking.flush_timeout=2"]
        yield BadInput("tracking URIs", words, expects, prepare=(_databases,), seconds=40)
    for _, env, words, expects in ENVIRONMENTS:
        yield BadInput("environment", words, expects, env=env, seconds=60, cold="WORLD_SIZE" in env or "RAY_ADDRESS" in env)
    for words, expects in OPTIONS.items():
        yield BadInput("options", words, expects, codes=_OTHER_CODES.get(words, (2,)))

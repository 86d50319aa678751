"""The `p2es` command. A stage runs the stages it needs first and reuses what is done."""

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import ValidationError

from p2es.demographics import Demographics, parse_sex
from p2es.errors import InputError, P2EsError
from p2es_platform.settings import Settings
from pipelines.dataset_args import DatasetArgs
from pipelines.evaluate_args import EvaluateChoice
from pipelines.recipes import RECIPES, Recipe, TuneConfig, named
from pipelines.simulator_args import GalleryArgs, PersonArgs

RecipeName = Literal["demo", "small", "base", "large", "site"]
# The version a command works on: a number, or an alias such as champion.
VersionName = str

_HELP = """usage: p2es COMMAND [options]

From a wearable pulse wave (PPG) to a 12-lead ECG. Everything it draws is SYNTHETIC and not for diagnosis.

{commands}

Recipes: demo (minutes on 2 cores), small (a GPU, minutes), base (a node), large (a cluster), site (goes on from a
version, with about twenty paired recordings of your own). Every number of a recipe can be given on the command line:
`p2es COMMAND --help` lists them with an example. Where things run is in the environment: RAY_ADDRESS,
MLFLOW_TRACKING_URI, P2ES_STORAGE, P2ES_SECRET, P2ES_ENDPOINT, P2ES_ENDPOINT_TOKEN.
"""


@dataclass(frozen=True)
class StageArgs:
    """What to run: a recipe by name, any number of it replaced."""

    recipe_name: Annotated[RecipeName, tyro.conf.arg(name="recipe")] = "demo"
    """The named configuration to start from."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=lambda: named("demo"))


@dataclass(frozen=True)
class IngestArgs(StageArgs):
    """A recipe, and the archive to read."""

    archive: tyro.conf.Positional[str | None] = None
    """A folder, file, glob, list (@list.txt) or bucket address. simulated:clinic (or another population) simulates the
    people of --simulate.* as it reads and writes no archive. Without any, the recipe's own simulated archive."""


@dataclass(frozen=True)
class EvaluateArgs(StageArgs):
    """A recipe, which says how much is drawn, and what is evaluated: without more, what the recipe trains."""

    choice: Annotated[EvaluateChoice, tyro.conf.arg(name="")] = EvaluateChoice()


@dataclass(frozen=True)
class TrainArgs(StageArgs):
    """A recipe, and where training starts."""

    parent: Annotated[VersionName | None, tyro.conf.arg(name="from")] = None
    """Version to go on from, with its network, weights and scales: fine-tuning on your own data. None starts afresh."""


@dataclass(frozen=True)
class TuneArgs(StageArgs):
    """A recipe, and what of it is searched."""

    tune: TuneConfig = TuneConfig()


@dataclass(frozen=True)
class PromoteArgs(TrainArgs):
    """A recipe, whose gate decides, and a version."""

    version: VersionName | None = None
    """Version to take through the gate. Without one: what the recipe trained last, registered first."""


@dataclass(frozen=True)
class RollbackArgs:
    """Nothing to choose: the champion before this one comes back."""


@dataclass(frozen=True)
class ModelsArgs:
    """Nothing to choose."""


@dataclass(frozen=True)
class ServeArgs(StageArgs):
    """A recipe, which says how many replicas, and a version."""

    version: VersionName = "champion"
    """Version or alias to serve."""


@dataclass(frozen=True)
class TranslateArgs:
    """What to translate, for whom, with which version."""

    path: tyro.conf.Positional[str]
    """A recording, a folder of recordings, or a dataset's folder (then as a Ray Data job over its test people)."""
    version: VersionName = "champion"
    """Version or alias to use."""
    age: str | None = None
    """Age in years; replaces what the file says."""
    sex: str | None = None
    """F or M; replaces what the file says."""
    height_cm: float | None = None
    weight_kg: float | None = None
    samples: int = 20
    """Draws a window: at least 20 for a band."""
    evaluations: int = 10
    """Network evaluations a draw."""
    seed: int = 0
    max_windows: int = 3
    """Windows of each record, spread over its good stretches; 0 takes all."""


@dataclass(frozen=True)
class JobsArgs:
    """Look at the jobs of the cluster at RAY_ADDRESS."""

    action: tyro.conf.Positional[Literal["list", "logs", "stop"]] = "list"
    job: tyro.conf.Positional[str | None] = None
    """Id of the job, for logs and stop."""


@dataclass(frozen=True)
class DoctorArgs:
    """Nothing to choose."""


@contextmanager
def _ray(recipe: Recipe, settings: Settings, **options: Any) -> Iterator[None]:
    from p2es_platform.cluster import connect

    resources = recipe.resources
    with connect(settings, local_cpus=resources.local_cpus, object_store_mb=resources.object_store_mb, **options):
        yield


def _teller() -> Any:
    from pipelines.demo import Teller

    return Teller(print)


def simulate(args: StageArgs, settings: Settings) -> int:
    """Simulate people and write them as WFDB files."""
    from pipelines import simulate as stage

    with _ray(args.recipe, settings):
        result = stage.run(args.recipe, settings)
    print(
        f"{result.records} records of {result.people} people in {result.folder}{' (reused)' if result.reused else ''}"
    )
    return 0


def person(args: PersonArgs, settings: Settings) -> int:
    """Simulate one person: draw 12 leads and the pulse, and print what is true of them."""
    from pipelines import person as stage

    named_shapes = tuple(name for name in args.morphology if name != "none") if args.morphology else None
    known = _person(args)
    changes = {} if known is None else {name: value for name, value in asdict(known).items() if value is not None}
    request = stage.PersonRequest(
        index=args.index,
        seed=args.seed,
        population=args.population,
        day=args.day,
        seconds=args.seconds,
        rhythm=args.rhythm,
        morphologies=named_shapes,
        demographics=changes,
        noise=args.noise,
    )
    made = request.simulate()
    written = stage.write(made, args.out, args.wfdb)
    print(stage.describe(made))
    for path in written:
        print(path)
    return 0


def gallery(args: GalleryArgs, settings: Settings) -> int:
    """Draw every rhythm, morphology and population of the simulator, with a page that says what to see."""
    from pipelines import gallery as stage

    print(stage.summary(stage.run(args.folder, args.only, print)))
    return 0


def ingest(args: IngestArgs, settings: Settings) -> int:
    """Read an archive into a dataset of windows."""
    from p2es.reasons import KEPT, explain
    from pipelines import ingest as stage
    from pipelines import simulate as people

    with _ray(args.recipe, settings):
        archive = args.archive or args.recipe.ingest.archive or people.run(args.recipe, settings).folder
        result = stage.run(args.recipe, settings, archive=archive, name=args.recipe.ingest.name)
    print(
        f"{result.windows} windows of {result.people} people in version {result.version} of {result.url}"
        f"{' (reused)' if result.reused else ''}"
    )
    print(f"{result.records} records; {result.candidates} windows tried; {result.documents} documents beside them")
    for reason, count in sorted(result.quarantined.items()):
        print(f"  {'kept    ' if reason in KEPT else 'left out'} {count:7d}  {reason:22s} {explain(reason)}")
    name = result.url.rsplit("/", 1)[-1]
    if result.quarantined:
        where = stage.address_of(archive, args.recipe)
        print(f"which ones: p2es dataset quarantine {name} --source {args.recipe.ingest.source} --archive {where}")
    return 0


def dataset(args: DatasetArgs, settings: Settings) -> int:
    """Look at datasets, check them, compare versions, delete a person, collect what is not needed."""
    from pipelines import dataset_commands

    answer = dataset_commands.run(args, settings, lambda: _ray(named("demo"), settings))
    print(answer)
    return 0 if answer.ok else 1


def group(args: StageArgs, settings: Settings) -> int:
    """Find demographic neighbours and clusters."""
    from pipelines import demo

    with _ray(args.recipe, settings):
        ready = demo.prepare(args.recipe, settings, _teller())
    print(f"groups in {ready.groups_url}")
    return 0


def train(args: TrainArgs, settings: Settings) -> int:
    """Train the diffusion model, or go on from a version on other data."""
    from pipelines import demo

    recipe, parent = _from_parent(args, settings)
    with _ray(recipe, settings):
        teller = _teller()
        trained = demo.fit(recipe, settings, demo.prepare(recipe, settings, teller), teller, parent)
    print(f"model {trained.sha256[:12]} in {trained.folder}, MLflow run {trained.run_id}")
    return 0


def _from_parent(args: TrainArgs, settings: Settings) -> tuple[Recipe, Any]:
    """Give the recipe with the network of the version to start from, and that version."""
    if args.parent is None:
        if args.recipe.needs_parent:
            raise InputError(f"the recipe {args.recipe.name} goes on from a version: add --from champion")
        return args.recipe, None
    from p2es_platform.registry import Registry
    from pipelines import train as stage

    found = Registry(settings).resolve(args.parent)
    parent = stage.Parent(str(found.folder), found.version, found.sha256)
    return stage.of_parent(args.recipe, parent), parent


def tune(args: TuneArgs, settings: Settings) -> int:
    """Search the numbers of a recipe: many short trainings, the worse ones stopped early."""
    from pipelines import demo
    from pipelines import tune as stage
    from pipelines.search_space import as_options, axes

    axes(args.tune.search, args.recipe)  # A mistake is told before anything is made.
    with _ray(args.recipe, settings):
        ready = demo.prepare(args.recipe, settings, _teller())
        found = stage.run(args.recipe, args.tune, settings, dataset_url=ready.dataset_url, groups_url=ready.groups_url)
    print(f"{'loss':>8s} {'windows':>8s}  values")
    for trial in found.trials:
        print(f"{trial.loss:8.4f} {trial.windows:8d}  {as_options(trial.values)}")
    best = as_options(found.trials[0].values)
    print(f"MLflow run {found.run_id} with a child for each; train with the best:")
    print(f"  p2es train --recipe {args.recipe.name} {best}")
    return 0


def evaluate(args: EvaluateArgs, settings: Settings) -> int:
    """Measure a model, a yardstick or another system's predictions on unseen people, beside controls."""
    from pipelines import evaluate_command

    with _ray(args.recipe, settings):
        return evaluate_command.run(args.recipe, args.choice, settings, _teller())


def promote(args: PromoteArgs, settings: Settings) -> int:
    """Register a version, take it through the recipe's gate and make it champion."""
    from pipelines import demo
    from pipelines import promote as stage

    if args.version is not None:
        result = stage.again(args.recipe, settings, version=args.version)
    else:
        recipe, parent = _from_parent(args, settings)
        with _ray(recipe, settings):
            teller = _teller()
            ready = demo.prepare(recipe, settings, teller)
            trained = demo.fit(recipe, settings, ready, teller, parent)
            found = demo.measure(recipe, settings, ready, trained, teller)
            result = demo.release(settings, recipe, trained, found, teller)
    for check in result.checks:
        mark = "met   " if check.passed else "MISSED"
        print(f"  {mark} {'must' if check.mandatory else '    '}  {check.name:13s} {check.claim}: {check.measured}")
    print(f"version {result.version} is {'champion' if result.passed else 'not promoted: a mandatory goal is missed'}")
    return 0 if result.passed else 1


def rollback(args: RollbackArgs, settings: Settings) -> int:
    """Make the champion before this one champion again."""
    from pipelines import promote as stage

    version = stage.rollback(settings)
    print(f"version {version} is champion again")
    return 0


def models(args: ModelsArgs, settings: Settings) -> int:
    """List the registered versions."""
    from pipelines import promote as stage

    rows = stage.models(settings)
    if not rows:
        print("no version is registered yet: `p2es promote` trains, evaluates and registers one")
        return 0
    columns = list(rows[0])
    widths = [max(len(name), *(len(str(row[name])) for row in rows)) for name in columns]
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        print("  ".join(str(row[name]).ljust(width) for name, width in zip(columns, widths, strict=True)).rstrip())
    return 0


def serve(args: ServeArgs, settings: Settings) -> int:
    """Serve a version over HTTP until Ctrl-C."""
    from p2es_platform.registry import Registry
    from pipelines import serve as stage

    chosen = Registry(settings).resolve(args.version)
    with _ray(args.recipe, settings, dashboard=False):
        for url in stage.run(
            settings,
            folder=str(chosen.folder),
            version=chosen.version,
            sha256=chosen.sha256,
            options=args.recipe.serve,
        ):
            print(f"version {chosen.version} answers on {url} (with a page; API: {url}/openapi.json); Ctrl-C ends it")
    return 0


def translate(args: TranslateArgs, settings: Settings) -> int:
    """Draw the 12-lead ECG of recorded PPG."""
    from p2es.model import P2Es
    from p2es_platform import versions
    from p2es_platform.registry import Registry
    from pipelines import translate as stage
    from pipelines.threads import all_cores

    person = _person(args)
    options = stage.TranslateOptions(args.samples, args.evaluations, args.seed, args.max_windows)
    if "://" not in args.path and not Path(args.path).exists() and not Path(f"{args.path}.hea").exists():
        raise InputError(f"there is no {args.path}: give a recording, a folder of recordings or a dataset")
    chosen = Registry(settings).resolve(args.version)
    loaded = stage.LoadedModel(P2Es.load(Path(chosen.folder)), chosen.version, chosen.sha256)
    if versions.exists(args.path):
        if person is not None:
            raise InputError("a dataset knows its people: leave out --age, --sex, --height-cm and --weight-kg")
        with _ray(named("demo"), settings):
            result = stage.dataset(args.path, str(chosen.folder), chosen.version, settings, options)
    else:
        with all_cores():
            result = stage.files(args.path, loaded, settings, options, person)
    if loaded.caution:
        print(loaded.caution)
    print(f"{result.windows} windows drawn by version {chosen.version}, SYNTHETIC, in {result.folder}")
    for path in result.figures:
        print(f"  {path}")
    for reason, count in result.refused.items():
        print(f"  not translated, {reason}: {count}")
    return 0


def _person(args: TranslateArgs | PersonArgs) -> Demographics | None:
    """Read the person of the command line; None when nothing was said."""
    if all(value is None for value in (args.age, args.sex, args.height_cm, args.weight_kg)):
        return None
    age = None
    if args.age is not None:
        try:
            age = float(args.age)
        except ValueError:
            raise InputError(
                f"--age {args.age} is not a number: give the age in years (90 for `>89`), or leave it out"
            ) from None
    sex = None if args.sex is None else parse_sex(args.sex)
    return Demographics(age, sex, args.height_cm, args.weight_kg)


def submit(argv: Sequence[str], settings: Settings) -> int:
    """Run any other command on the cluster at RAY_ADDRESS, follow its log and return its exit status."""
    from p2es_platform import jobs

    wait = "--no-wait" not in argv
    command = [word for word in argv if word not in ("--no-wait", "--")]
    if not command or command[0] not in COMMANDS or command[0] in ("submit", "jobs", "demo"):
        raise InputError("say what to submit, as in `p2es submit train --recipe small`")
    if command[0] in ARGUMENTS:
        _parse(command[0], command[1:])  # A mistake is told here, not after minutes on the cluster.
    job = jobs.submit(settings, command)
    print(f"submitted as {job}; `p2es jobs logs {job}` shows its log, `p2es jobs stop {job}` ends it")
    return jobs.follow(settings, job) if wait else 0


def jobs(args: JobsArgs, settings: Settings) -> int:
    """List the cluster's jobs, show a log, stop one."""
    from p2es_platform import jobs as cluster_jobs

    if args.action == "list":
        for row in cluster_jobs.listing(settings):
            print(f"{row.job_id:34s} {row.status:10s} {row.entrypoint}")
        return 0
    if args.job is None:
        raise InputError(f"say which job: `p2es jobs {args.action} JOB`; `p2es jobs list` names them")
    if args.action == "logs":
        print(cluster_jobs.logs(settings, args.job), end="")
    else:
        cluster_jobs.stop(settings, args.job)
        print(f"{args.job} was told to stop")
    return 0


def doctor(args: DoctorArgs, settings: Settings) -> int:
    """Say what is installed, reachable and writable."""
    from p2es_platform.doctor import checks

    found = checks(settings)
    for check in found:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:12s} {check.detail}")
        if not check.ok and check.hint:
            print(f"      {'':12s} {check.hint}")
    return 0 if all(check.ok for check in found) else 1


def demo(args: StageArgs, settings: Settings) -> int:
    """Run the whole path, from simulated people to a served ECG."""
    from pipelines import demo as whole

    return 0 if whole.run(args.recipe, settings, print) else 1


COMMANDS: dict[str, tuple[Callable[..., int], str]] = {
    "simulate": (simulate, "p2es simulate --simulate.people 200 --simulate.population clinic"),
    "person": (person, "p2es person 7 --population clinic --rhythm atrial_fibrillation --morphology rbbb"),
    "gallery": (gallery, "p2es gallery docs/gallery"),
    "ingest": (ingest, "p2es ingest path/to/archive --ingest.source mimic"),
    "dataset": (dataset, "p2es dataset show NAME"),
    "group": (group, "p2es group --group.neighbours 20"),
    "train": (train, "p2es train --recipe small --train.windows 100000"),
    "tune": (tune, "p2es tune --tune.trials 20 --tune.search train.learning-rate:log:1e-4:1e-2 train.ema:uniform:.9:1"),
    "evaluate": (evaluate, "p2es evaluate --evaluate.max-windows 400"),
    "promote": (promote, "p2es promote --version 3"),
    "rollback": (rollback, "p2es rollback"),
    "models": (models, "p2es models"),
    "serve": (serve, "p2es serve --version champion"),
    "translate": (translate, "p2es translate path/to/record.hea --age 53 --sex F"),
    "submit": (submit, "RAY_ADDRESS=http://head:8265 p2es submit train --recipe small"),
    "jobs": (jobs, "p2es jobs logs p2es-train-1a2b3c"),
    "doctor": (doctor, "p2es doctor"),
    "demo": (demo, "p2es demo"),
}

ARGUMENTS: dict[str, type] = {
    "simulate": StageArgs,
    "person": PersonArgs,
    "gallery": GalleryArgs,
    "ingest": IngestArgs,
    "dataset": DatasetArgs,
    "group": StageArgs,
    "train": TrainArgs,
    "tune": TuneArgs,
    "evaluate": EvaluateArgs,
    "promote": PromoteArgs,
    "rollback": RollbackArgs,
    "models": ModelsArgs,
    "serve": ServeArgs,
    "translate": TranslateArgs,
    "jobs": JobsArgs,
    "doctor": DoctorArgs,
    "demo": StageArgs,
}

Args = TypeVar("Args")


def _summary(command: str) -> str:
    return (COMMANDS[command][0].__doc__ or "").strip().splitlines()[0]


def _overview() -> str:
    lines = [f"  {name:10s} {_summary(name)}\n             {example}" for name, (_, example) in COMMANDS.items()]
    return _HELP.format(commands="\n".join(lines))


def _recipe_in(argv: Sequence[str]) -> str:
    """Find the recipe's name before the rest is parsed: its numbers are the defaults of the rest."""
    for index, word in enumerate(argv):
        if word == "--recipe" and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith("--recipe="):
            return word.partition("=")[2]
    return "demo"


def _parse(command: str, argv: Sequence[str]) -> Any:
    kind = ARGUMENTS[command]
    default: Any = tyro.MISSING_NONPROP
    if issubclass(kind, StageArgs):
        name = _recipe_in(argv)
        if name in RECIPES:
            default = kind(recipe_name=name, recipe=named(name))  # type: ignore[arg-type]
    description = f"{_summary(command)}\n\nExample: {COMMANDS[command][1]}"
    # In a recipe a flag takes its value, so that True can be set to False in the same way as any number.
    config = (tyro.conf.FlagConversionOff,) if issubclass(kind, StageArgs) else (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(
        kind, args=list(argv), default=default, prog=f"p2es {command}", description=description, config=config
    )


def _run(command: str, argv: Sequence[str]) -> int:
    settings = Settings()
    if command == "submit":
        if not argv or argv[0] in ("-h", "--help"):
            print(f"usage: p2es submit COMMAND [options] [--no-wait]\n\n{_summary('submit')}\n\n"
                  f"Example: {COMMANDS['submit'][1]}")  # fmt: skip
            return 0 if argv else 2
        return submit(argv, settings)
    return COMMANDS[command][0](_parse(command, argv), settings)


def _quiet() -> None:
    """Keep what other libraries say to themselves off the terminal; P2ES_DEBUG=1 shows it."""
    if os.environ.get("P2ES_DEBUG"):
        logging.basicConfig(level=logging.DEBUG)
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("mlflow", "alembic", "ray", "ray.data", "ray.serve", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 when it did what was asked, 1 when it decided no, 2 for a mistake."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"p2es: there is no command {argv[0]!r}: `p2es --help` lists them", file=sys.stderr)
        return 2
    _quiet()
    # A job that is stopped by its scheduler ends as one stopped by hand: nothing half-written, nothing running.
    # Both are set, since a shell starts its background jobs with SIGINT ignored.
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGINT, _interrupted)
    try:
        return _run(argv[0], argv[1:])
    except P2EsError as error:
        if os.environ.get("P2ES_DEBUG"):
            raise
        message = " ".join(str(error).split())
    except ValidationError as error:
        fault = error.errors()[0]
        message = f"the setting {'.'.join(map(str, fault['loc']))} is wrong: {fault['msg']}"
    except KeyboardInterrupt:
        print(f"\np2es {argv[0]}: interrupted; what is done is kept, run it again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = error.filename or "to the storage"
        message = f"cannot use {where} ({error.strerror}): nothing was lost, mend that and run again"
    print(f"p2es {argv[0]}: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

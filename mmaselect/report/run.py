"""What a work dir says of its run: config, selection, curves, metrics, pictures, machine."""
import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mmaselect.selection import SelectionResult

SESSION = re.compile(r'\d{8}_\d{6}')  # MMEngine's folder of one start of a tool
NO_METRICS = ('step', 'epoch', 'iter', 'time', 'data_time', 'memory')


@dataclass
class Run:
    """A run, as far as its files tell; what is missing is None or empty.

    Attributes:
        folder (Path): The work dir.
        config_file (Path | None), config_text (str), config (dict): The config as MMEngine dumped it, and its values.
        selection (SelectionResult | None): What the sweep found.
        train (dict[str, list[tuple[int, float]]]): Per name of a logged value its steps and values.
        val (dict[str, list[tuple[int, float]]]): The same of the evaluations, by iteration or epoch.
        test (dict[str, float]): The last test's metrics.
        environment (dict[str, str]): What MMEngine logged of the machine.
        seconds (float): Between the first and the last line of the logs.
        done (int), total (int | None): Iterations, or epochs where ``unit`` is 'epoch'.
        unit (str): 'iteration' or 'epoch'.
        checkpoint (Path | None): The last.
        predictions (list[Path]), maps (list[Path]): Pictures of predictions, and those that the vis tools drew.
        notes (list[str]): What could not be read, a sentence each.
    """
    folder: Path
    config_file: Path | None = None
    config_text: str = ''
    config: dict = field(default_factory=dict)
    selection: SelectionResult | None = None
    train: dict = field(default_factory=dict)
    val: dict = field(default_factory=dict)
    test: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    seconds: float = 0.0
    done: int = 0
    total: int | None = None
    unit: str = 'iteration'
    checkpoint: Path | None = None
    predictions: list = field(default_factory=list)
    maps: list = field(default_factory=list)
    notes: list = field(default_factory=list)


def read(work_dir: str | Path) -> Run:
    """Reads a run, finished or not.

    Args:
        work_dir: What tools/train.py or tools/select_timestep.py wrote.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
    """
    run = Run(Path(work_dir))
    if not run.folder.is_dir():
        raise FileNotFoundError(f'there is no folder {work_dir}: give the work dir of a run')
    sessions = sorted(path for path in run.folder.iterdir() if path.is_dir() and SESSION.fullmatch(path.name))
    selection = run.folder / 'timestep_selection.json'
    if not sessions and not selection.is_file():
        raise FileNotFoundError(f'{work_dir} holds no run, neither a folder such as 20260131_235959 with a log nor a '
                                'timestep_selection.json: give the work dir of tools/train.py or tools/select_timestep.py')
    if selection.is_file():
        try:
            run.selection = SelectionResult.load(selection)
        except ValueError as error:
            run.notes.append(str(error))
    _read_config(run, sessions)
    _read_curves(run, sessions)
    _read_logs(run, sessions)
    _read_progress(run)
    _read_pictures(run, sessions)
    return run


def nodes(tree: Any) -> Iterator[dict]:
    """Every dict of a config, outermost first."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(child)


def value(node: ast.expr) -> Any:
    """The value of an expression of a dumped config: literals and calls of dict; of anything else, its text."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return [value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {value(key): value(item) for key, item in zip(node.keys, node.values, strict=True) if key is not None}
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict' and not node.args:
        return {item.arg: value(item.value) for item in node.keywords if item.arg}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return ast.unparse(node)


def _read_config(run: Run, sessions: list[Path]) -> None:
    files = sorted(run.folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    files = files or [path / 'vis_data' / 'config.py' for path in sessions if (path / 'vis_data' / 'config.py').is_file()]
    if not files:
        return
    run.config_file = files[-1]
    run.config_text = run.config_file.read_text(errors='replace')
    try:
        for statement in ast.parse(run.config_text).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                run.config[statement.targets[0].id] = value(statement.value)
    except (SyntaxError, ValueError) as error:
        run.notes.append(f'{run.config_file.name} is not a whole config ({error})')


def scalars(session: Path) -> Iterator[dict[str, float]]:
    """The lines of a session's scalars.json that are whole, as dicts of numbers. A killed run can leave half a line."""
    file = session / 'vis_data' / 'scalars.json'
    for line in file.read_text(errors='replace').splitlines() if file.is_file() else ():
        try:
            entry = {key: number for key, number in json.loads(line).items() if isinstance(number, (int, float))}
        except (ValueError, AttributeError):
            continue
        if 'step' in entry and not any(key.startswith('timestep_selection/') for key in entry):
            yield entry


def _log(session: Path) -> str:
    file = session / f'{session.name}.log'
    return file.read_text(errors='replace') if file.is_file() else ''


def _trainings(sessions: list[Path]) -> list[Path]:
    """The sessions of the last training: it, and those that it resumed."""
    chain: list[Path] = []
    for session in reversed(sessions):
        if any('lr' in entry for entry in scalars(session)):
            chain.insert(0, session)
            if 'resumed epoch' not in _log(session):
                break
    return chain


def _read_curves(run: Run, sessions: list[Path]) -> None:
    for session in _trainings(sessions):
        fresh: dict[str, dict[str, list]] = {'train': {}, 'val': {}}
        for entry in scalars(session):
            kind = 'train' if 'lr' in entry else 'val'
            if 'epoch' in entry:
                run.unit = 'epoch'
                run.done = max(run.done, int(entry['epoch']))
            elif kind == 'train':
                run.done = max(run.done, int(entry['step']))
            for key, number in entry.items():
                if key not in NO_METRICS:
                    fresh[kind].setdefault(key, []).append((int(entry['step']), number))
        for curves, new in ((run.train, fresh['train']), (run.val, fresh['val'])):
            for key, points in new.items():  # what an earlier session did after the checkpoint that was resumed is void
                curves[key] = [p for p in curves.get(key, []) if p[0] < points[0][0]] + points
    for session in sessions:
        try:
            tested = json.loads((session / f'{session.name}.json').read_text())
            run.test = {key: number for key, number in tested.items()
                        if isinstance(number, (int, float)) and key not in NO_METRICS} or run.test
        except (OSError, ValueError, AttributeError):
            continue


def _read_logs(run: Run, sessions: list[Path]) -> None:
    for session in _trainings(sessions) or sessions[-1:]:
        text = _log(session)
        run.environment.update(re.findall(r'^    ([\w .]+?): (.+)$', text, re.MULTILINE))
        times = re.findall(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', text, re.MULTILINE)
        if times:
            first, last = (datetime.strptime(time, '%Y/%m/%d %H:%M:%S') for time in (times[0], times[-1]))
            run.seconds += (last - first).total_seconds()


def _read_progress(run: Run) -> None:
    loop = run.config.get('train_cfg') or {}
    total = loop.get('max_epochs' if run.unit == 'epoch' else 'max_iters') if isinstance(loop, dict) else None
    run.total = total if isinstance(total, int) else None
    pointer = run.folder / 'last_checkpoint'
    name = Path(pointer.read_text(errors='replace').strip()).name if pointer.is_file() else ''
    if name and (run.folder / name).is_file():
        run.checkpoint = run.folder / name
        number = re.search(r'_(\d+)\.pth$', name)
        run.done = max(run.done, int(number[1]) if number else 0)


def _read_pictures(run: Run, sessions: list[Path]) -> None:
    """Predictions of the last session that drew any, of each image the last."""
    for session in reversed(sessions):
        drawn: dict[str, tuple[int, Path]] = {}
        for path in sorted(session.rglob('vis_image/*.png')):
            name, _, step = path.stem.rpartition('_')  # as LocalVisBackend names them
            if name != 'timestep_selection' and step.isdecimal():
                drawn[name] = max(drawn.get(name, (0, path)), (int(step), path))
        if drawn:
            run.predictions = [path for _, path in drawn.values()]
            break
    run.maps = [path for name in ('vis_features', 'vis_timesteps') for path in sorted(run.folder.glob(f'{name}*.png'))]

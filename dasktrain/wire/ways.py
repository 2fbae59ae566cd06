"""How the parameters of a round come to a worker, and how its answer is to be sent, where that is not as ever."""

from dataclasses import dataclass, replace

from dasktrain.messages import Header, Task, of_kind, reading
from dasktrain.topology import AMONG, Reduction


@dataclass(frozen=True, slots=True)
class Via:
    """Send by way of another worker of this host, which takes connections at a gate.

    `given`: the parameters come from there.
    """

    gate: str
    given: bool = False


@dataclass(frozen=True, slots=True)
class Joint:
    """Send for other workers of this host as well, whose tasks follow this worker's shard by shard.

    Attributes
    ----------
    tasks : tuple of Task
        Of the others.
    gives : bool
        Whether they get the parameters from this worker.
    among : Among or None
        How this worker then reduces among peers of other hosts, for all of its host; None: it sends to the driver.
    """

    tasks: tuple[Task, ...]
    gives: bool = False
    among: "Among | None" = None


@dataclass(frozen=True, slots=True)
class Among:
    """Reduce among peers, along the routes of :mod:`dasktrain.wire.routes`.

    Attributes
    ----------
    mesh : str
        Name of the connections among them, which nobody else knows.
    place : int
        Which of the peers this worker is.
    peers : tuple of str
        Their addresses.
    tasks : tuple of Task
        What each of them computes, or has computed on its host.
    reduction : str
        "sharded" or "tree".
    is_new : bool
        Whether the worker is told all this, which stays as it is as long as the mesh does.
    """

    mesh: str
    place: int
    peers: tuple[str, ...]
    tasks: tuple[Task, ...]
    reduction: Reduction = "sharded"
    is_new: bool = True


#: how parameters come and an answer is to be sent; None: as ever
Way = Via | Joint | Among | None


def among(way: Way) -> "Among | None":
    """Return how a worker reduces among peers, if it does."""
    return way.among if isinstance(way, Joint) else way if isinstance(way, Among) else None


def whole(task: Task, way: Way) -> Task:
    """Return what is computed for a worker's own task and those that it sends for."""
    return replace(task, stop=way.tasks[-1].stop) if isinstance(way, Joint) else task


def with_peers(way: Way, peers: Among) -> Way:
    """Return the way of a worker that reduces among peers as well."""
    return replace(way, among=peers) if isinstance(way, Joint) else peers


def without_peers(way: Way) -> Way:
    """Return the way of a worker that does what is left of it without peers."""
    return replace(way, among=None) if isinstance(way, Joint) else None


def from_driver(way: Way) -> bool:
    """Return whether all parameters come from the driver."""
    return among(way) is None and not (isinstance(way, Via) and way.given)


def encode_way(way: Way) -> Header:
    """Turn the way of an answer into a part of the header that asks for it."""
    match way:
        case Via(gate, given):
            return {"via": gate, "given": given}
        case Joint(tasks, gives, among):
            return {"joint": [(task.start, task.stop) for task in tasks], "gives": gives} | encode_way(among)
        case Among(mesh, place, is_new=False):
            return {"mesh": mesh, "place": place}
        case Among(mesh, place, peers, tasks, reduction):
            shares = [(task.start, task.stop) for task in tasks]
            return {"mesh": mesh, "place": place, "peers": list(peers), "shares": shares, "reduction": reduction}
    return {}


@reading()
def decode_way(header: Header, task: Task) -> Way:
    """Return the way that the answer to a task is to be sent.

    Raises
    ------
    WireError
        It is not what `encode_way` makes.
    """
    if "via" in header:
        return Via(of_kind(str, header["via"]), of_kind(bool, header["given"]))
    if "joint" in header:
        return _joint(header, task)
    return _among(header, task) if "mesh" in header else None


def _joint(header: Header, task: Task) -> Joint:
    tasks, end = [], task.stop
    for start, stop in header["joint"]:
        if of_kind(int, start) != end or of_kind(int, stop) <= start:
            raise ValueError(f"shards {start} to {stop} do not follow {end}")
        tasks.append(replace(task, start=start, stop=stop))
        end = stop
    joint = Joint(tuple(tasks), of_kind(bool, header["gives"]))
    return replace(joint, among=_among(header, whole(task, joint))) if "mesh" in header else joint


def _among(header: Header, task: Task) -> Among:
    if "peers" not in header:
        return Among(of_kind(str, header["mesh"]), of_kind(int, header["place"]), (), (), is_new=False)
    tasks = tuple(replace(task, start=of_kind(int, start), stop=of_kind(int, stop)) for start, stop in header["shares"])
    peers, place = tuple(of_kind(str, peer) for peer in header["peers"]), of_kind(int, header["place"])
    if len(peers) != len(tasks) or not 0 <= place < len(peers) or tasks[place] != task:
        raise ValueError(f"peer {place} of {len(peers)} does not compute {task.start} to {task.stop}")
    if any(not 0 <= each.start < each.stop for each in tasks):
        raise ValueError("a peer computes nothing")
    if (reduction := header["reduction"]) not in AMONG:
        raise ValueError(f"peers do not reduce by {reduction!r:.80}")
    return Among(of_kind(str, header["mesh"]), place, peers, tasks, reduction)

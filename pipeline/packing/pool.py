"""Jobs in worker processes: each gets its next job when it has finished one."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice

from pipeline.errors import MaskAlignError
from pipeline.packing.work import Ended, Job, run_job, serve_packing
from pipeline.runtime.workers import Worker, WorkerDiedError, ready_workers


def run_jobs(
    jobs: Iterable[Job], workers: int, advance: Callable[[int], None]
) -> Iterator[tuple[Job, Ended]]:
    """Yield jobs as they end; without workers they run in this process. `advance` gets numbers of images.

    Raises MaskAlignError if a worker dies.
    """
    if not workers:
        yield from ((job, run_job(job, advance)) for job in jobs)
        return
    waiting, busy = iter(jobs), dict[Worker, Job]()
    try:
        with ExitStack() as running:
            for number, job in enumerate(islice(waiting, workers)):
                worker = Worker(f"pack-{number}", serve_packing)
                running.callback(worker.end)
                worker.send(job)
                busy[worker] = job
            while busy:
                for worker in ready_workers(list(busy)):
                    answer = worker.receive()
                    if not isinstance(answer, Ended):
                        advance(answer)
                        continue
                    yield busy.pop(worker), answer
                    for job in islice(waiting, 1):
                        worker.send(job)
                        busy[worker] = job
    except WorkerDiedError as error:
        cure = "lower --workers and run" if error.lacks_memory else "run"
        raise MaskAlignError(f"a packing worker {error}: {cure} the same command again") from None

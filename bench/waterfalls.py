"""Where the milliseconds of a warm job go, by its own timeline: medians over some jobs."""

from statistics import median

from bench.latency import followed
from bench.place import Place
from bench.report import Row
from ci_client.waterfall import spans_of


def waterfall(place: Place) -> list[Row]:
    """A row for each span of a warm job."""
    project = place.project("tiny", "ours")
    place.submit(project)
    found: dict[tuple[int, str], list[float]] = {}
    with place.system.http(place.server) as http:
        for _ in range(place.rounds):
            job_id = followed(place, project).job_id
            spans = spans_of(http.get(f"/jobs/{job_id}/timeline").raise_for_status().json())
            for number, span in enumerate(spans):
                found.setdefault((number, span.label), []).append(span.took_ms)
    usual = {key: took for key, took in sorted(found.items()) if len(took) * 2 > place.rounds}
    assert median(map(len, usual.values())) > 0
    return [
        Row(f"waterfall of a warm job, {number}: {label}", "ms", tuple(took))
        for (number, label), took in usual.items()
    ]

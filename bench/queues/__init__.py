"""The queue and its peers, one program for each: `python -m bench.queues.ours '<request as JSON>'`."""

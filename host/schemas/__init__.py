"""JSON Schemas of strangers, judged in a process of its own: they keep busy and fill nothing else."""

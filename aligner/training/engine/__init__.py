"""One update: records -> micro-batches -> loss -> gradient, in the room that knows DeepSpeed."""

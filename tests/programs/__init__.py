"""Programs that tests run under the real DeepSpeed launcher."""

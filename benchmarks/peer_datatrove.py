"""datatrove: DocumentTokenizer, one file of raw uint16 IDs for each task, its own tokenizer by `tokenizers`."""

from __future__ import annotations

import time
from pathlib import Path

from common import arguments, converted, report
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer


def main() -> None:
    """Tokenize all parts."""
    files, output, workers, _ = arguments()
    tokenizer = output / "tokenizer.json"
    converted().save(str(tokenizer))
    started = time.perf_counter()
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(Path(files[0]).parent), text_key="text", id_key="id"),
            DocumentTokenizer(
                output_folder=str(output / "tokens"),
                local_working_dir=str(output / "work"),
                tokenizer_name_or_path=str(tokenizer),
                eos_token="<|endoftext|>",
            ),
        ],
        tasks=len(files),
        workers=workers,
        logging_dir=str(output / "logs"),
    ).run()
    seconds = time.perf_counter() - started
    report(seconds, sum(file.stat().st_size for file in (output / "tokens").glob("*.ds")) // 2)


if __name__ == "__main__":
    main()

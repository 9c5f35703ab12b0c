"""llm, the command line: a model from a configuration file, a prompt from a pipe."""

import os
import subprocess
import sys
from pathlib import Path

CONFIGURATION = """
- model_id: local-demo
  model_name: demo
  api_base: {address}
"""

if __name__ == "__main__":
    folder = Path(os.environ["LLM_USER_PATH"])
    (folder / "extra-openai-models.yaml").write_text(CONFIGURATION.format(address=os.environ["MLXK_BASE_URL"]))
    for flags in ([], ["--no-stream"]):
        done = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "local-demo", "-o", "temperature", "0", *flags],
            input="What is mlxk?",
            capture_output=True,
            text=True,
            check=True,
        )
        assert "knife for local models" in done.stdout, done.stdout

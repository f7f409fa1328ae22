"""The settings of `ci-agent`: what it runs jobs by, and whose jobs."""

import socket
from pathlib import Path

from pydantic import Field, SecretStr

from ci_common.errors import Unauthorized
from ci_common.job_terms import DEFAULT_POOL, POOL_NAME
from ci_common.models import AgentProfile
from ci_common.settings import ArchiveSettings
from ci_controller.settings import RunnerSettings


class AgentSettings(RunnerSettings, ArchiveSettings):
    """What an operator can decide about an agent; its jobs and their containers are limited as the controller's."""

    server_url: str = Field(default="http://localhost:8000", description="The server's address.")
    agent_key: SecretStr | None = Field(
        default=None, description="The agent's API key (scope `agent`); better is `CI_AGENT_KEY_FILE`."
    )
    agent_key_file: Path | None = Field(default=None, description="A file with the key and nothing else.")
    agent_name: str = Field(
        default_factory=socket.gethostname, description="What people know it by; the host's name by default."
    )
    agent_pool: str = Field(
        default=DEFAULT_POOL, pattern=f"^{POOL_NAME}$", description="The pool whose jobs it runs."
    )
    agent_labels: str = Field(default="", description="Words for people, separated by commas: `cuda,big`.")
    agent_data_dir: Path = Field(
        default=Path("ci_agent.data"),
        description="Logs on their way to the server, and trees while they are fed.",
    )

    @property
    def key(self) -> str:
        """The API key; raises Unauthorized where there is none, OSError for a file that cannot be read."""
        if self.agent_key_file:
            return self.agent_key_file.read_text(encoding="utf-8").strip()
        if self.agent_key:
            return self.agent_key.get_secret_value()
        raise Unauthorized(
            "There is no API key: set CI_AGENT_KEY_FILE or CI_AGENT_KEY; "
            "`ci-admin key create --scope agent` issues one."
        )

    def profile(self, version: str) -> AgentProfile:
        """Return what the agent says of itself."""
        labels = tuple(word.strip() for word in self.agent_labels.split(",") if word.strip())
        return AgentProfile(self.agent_name, self.agent_pool, self.max_running_jobs, labels, version)

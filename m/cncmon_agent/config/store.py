"""The last good configuration on disk: from it the edge starts when there is no network."""

import hashlib
from pathlib import Path

import msgspec

from cncmon_agent.durable_file import DurableFile
from cncmon_core import edge_config
from cncmon_core.edge_config import EdgeConfig
from cncmon_core.errors import ConfigError, EdgeConfigError

FILE = "config.json"


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """The file: the document as it is, and the hex SHA-256 of its bytes.

    JSON alone would not tell a damaged register number from another one.
    """

    sha256: str
    document: msgspec.Raw


class ConfigStore:
    """One file. Not for use from two threads at once."""

    def __init__(self, folder: Path, site: str, edge: str) -> None:
        self._file = DurableFile(folder / FILE)
        self._site = site
        self._edge = edge

    def load(self) -> EdgeConfig | None:
        """Return what was kept, or None where nothing was.

        Raises:
            ConfigError: it can't be used; says why.
        """
        try:
            content = self._file.read()
            if content is None:
                return None
            kept = msgspec.json.decode(content, type=_Kept)
            document = bytes(kept.document)
            if hashlib.sha256(document).hexdigest() != kept.sha256:
                raise ConfigError(f"{self._file.path} is damaged: its hash is wrong")
            return edge_config.decode(document, self._site, self._edge)
        except OSError as error:
            raise ConfigError(f"{self._file.path} can't be read: {error.strerror}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{self._file.path} is damaged: {error}") from error
        except EdgeConfigError as error:
            # Another version, or another edge, wrote it.
            raise ConfigError(f"{self._file.path} can't be used: {error}") from error

    def save(self, config: EdgeConfig) -> None:
        """Keep a configuration, durably. Blocks for the disk.

        Raises:
            OSError: it is not kept; what was is.
        """
        document = edge_config.encode(config)
        self._file.write(msgspec.json.encode(_Kept(hashlib.sha256(document).hexdigest(), msgspec.Raw(document))))

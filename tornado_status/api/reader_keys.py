"""/api/group-keys: the keys of sealed announcements, for readers."""

from __future__ import annotations

import base64
import datetime
import json
from itertools import pairwise

from tornado_status.api.read_handler import ReadHandler
from tornado_status.model.records import GROUP_KEY_EPOCH_S, GroupKey, timestamp


class GroupKeysHandler(ReadHandler):
    """The key of the epoch in use, and that of the next."""

    async def get(self) -> None:
        self.require_reader()
        keys = await self.store.group_keys()
        self.write_json(json.dumps({"keys": _members(keys)}).encode())


def _members(keys: list[GroupKey]) -> list[dict[str, object]]:
    starts = [key.starts_at for key in keys]
    if starts:
        starts.append(starts[-1] + datetime.timedelta(seconds=GROUP_KEY_EPOCH_S))
    return [
        {
            "epoch": key.epoch,
            "key": base64.urlsafe_b64encode(key.secret).rstrip(b"=").decode(),
            "from": timestamp(start),
            "to": timestamp(end),
        }
        for key, (start, end) in zip(keys, pairwise(starts), strict=True)
    ]

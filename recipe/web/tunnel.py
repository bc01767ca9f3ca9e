"""How to reach the page of a rented machine from one's own: its ssh has another address and port than it knows."""

from pathlib import Path
from typing import Mapping, NamedTuple, Optional

from recipe.core import rental
from recipe.core.translation import _


class Access(NamedTuple):
    """`ssh`: the words after `ssh -L …`; `hint`: where to find what must be filled in ("" if nothing); `address`: the
    page's, where the platform publishes a port ("" if it does not say).
    """

    ssh: str
    hint: str
    address: str


def access(port: int, known: Mapping[str, str], root: Path = Path("/")) -> Optional[Access]:
    """Access to `port` of this machine by its platform's variables, which are in `known`; None if it is not rented."""
    platform = rental.platform(known, root)
    if platform == "RunPod":
        host, ssh = known.get("RUNPOD_PUBLIC_IP"), known.get("RUNPOD_TCP_PORT_22")
        hint = _("RunPod: the pod's Connect tab has HOST and PORT under SSH over exposed TCP")
        return _access(host, ssh, hint, f"https://{known['RUNPOD_POD_ID']}-{port}.proxy.runpod.net")
    if platform == "Vast.ai":
        host, opened = known.get("PUBLIC_IPADDR"), known.get(f"VAST_TCP_PORT_{port}")
        hint = _("Vast.ai: the instance's SSH button shows HOST and PORT")
        return _access(host, known.get("VAST_TCP_PORT_22"), hint, f"http://{host}:{opened}" if host and opened else "")
    if platform == "AutoDL":
        return _access(
            None, None, _("AutoDL: HOST and PORT are in the instance's SSH command (登录指令) in the console"), ""
        )
    return None


def _access(host: Optional[str], port: Optional[str], hint: str, address: str) -> Access:
    if host and port:
        return Access(f"-p {port} root@{host}", "", address)
    return Access("-p PORT root@HOST", hint, address)

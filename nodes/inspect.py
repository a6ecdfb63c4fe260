"""Inspect Maps: where and how strongly a concept acts, and how like another it is."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ..hypertransport_core.inspection import summary
from ..hypertransport_core.plots import maps_plot
from .maps import same_backbone
from .sockets import Maps, PredictedMaps, node_schema


class InspectMaps(io.ComfyNode):
    """Maps as a picture and as words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportInspectMaps", display_name="Inspect Maps", category="HyperTransport/maps",
            description="Draws where in the network a concept acts and how strongly: the size of scale and shift at every "
                        "place, from the first block to the last. With second maps it shows how alike two concepts are, "
                        "place by place.",
            search_aliases=("plot maps", "visualize", "analyse concept", "compare concepts", "statistics"),
            inputs=[Maps.Input("maps", tooltip="The maps to look at: the bars."),
                    Maps.Input("second_maps", optional=True, tooltip="Other maps of the same model to compare with: the black "
                                                                     "marks, and a panel of cosines. Open: no comparison.")],
            outputs=[io.Image.Output("plot", display_name="plot", tooltip="1800 pixels wide, made to be read at half size."),
                     io.String.Output("summary", display_name="summary", tooltip="The same in words and numbers.")])

    @classmethod
    def execute(cls, maps: PredictedMaps, second_maps: PredictedMaps | None = None) -> io.NodeOutput:
        other, other_name = None, ""
        if second_maps is not None:
            same_backbone(maps, second_maps)
            other, other_name = second_maps.steps, second_maps.name
        picture = maps_plot(maps.steps, maps.name, other, other_name).movedim(0, -1)[None]
        text = summary(maps.steps, maps.name, str(maps.backbone.get("family") or ""), other, other_name)
        return io.NodeOutput(picture, text, ui=ui.PreviewText(text))


NODES: tuple[type[io.ComfyNode], ...] = (InspectMaps,)

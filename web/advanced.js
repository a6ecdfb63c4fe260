// Folds away the inputs that a node of this pack calls advanced, until "Show Advanced" is chosen in the node's menu.
//
// The page has that menu entry and hides such widgets by itself, but some of its versions note what is advanced in the
// widget's options only, and leave a gap where a hidden widget would be. Nothing is changed where the page does it all.
import { app } from "../../scripts/app.js"

const OURS = /^HyperTransport/
const HEIGHT = 20 // of a widget, where the page does not say

const advanced = (node) => (node.widgets ?? []).filter((widget) => widget.options?.advanced)

function fold(node) {
    for (const widget of advanced(node)) {
        if (widget.advanced) continue
        widget.advanced = true
        const size = widget.computeSize
        widget.computeSize = function (width) {
            if (!node.showAdvanced) return [0, -4] // the page adds 4 pixels between widgets
            return size ? size.call(this, width) : [width, globalThis.LiteGraph?.NODE_WIDGET_HEIGHT ?? HEIGHT]
        }
    }
}

function isInUse(node, widget) {
    const optional = node.constructor.nodeData?.input?.optional ?? {}
    const [kind, about] = optional[widget.name] ?? []
    const choices = Array.isArray(kind) ? kind : about?.options
    const linked = node.inputs?.some((slot) => slot.widget?.name === widget.name && slot.link != null)
    return linked || widget.value !== (about?.default ?? choices?.[0] ?? widget.value)
}

app.registerExtension({
    name: "HyperTransport.Advanced",
    nodeCreated(node) {
        if (!OURS.test(node.comfyClass ?? "") || !advanced(node).length) return
        const unfolded = node.computeSize()[1]
        fold(node)
        node.setSize([node.size[0], node.size[1] - unfolded + node.computeSize()[1]])
    },
    loadedGraphNode(node) {
        // A saved value that is not the default must be seen.
        if (OURS.test(node.comfyClass ?? "") && advanced(node).some((widget) => isInUse(node, widget))) {
            node.showAdvanced = true
            node.expandToFitContent?.()
        }
    },
})

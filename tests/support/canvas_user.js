// Finds a node by type or title, keeps what the host says of a run, and gives places on the page for the mouse.
() => {
    const find = name => app.graph.nodes.find(n => n.type === name || n.title === name)
    const onPage = point => {
        const [x, y] = app.canvas.ds.convertOffsetToCanvas(point)
        const {left, top} = app.canvas.canvas.getBoundingClientRect()
        return [x + left, y + top]
    }
    const ends = []
    for (const name of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(name, () => ends.push(name))
    // what the host has had nodes say: newer frontends show it until the run ends, older ones leave it there
    const said = []
    app.api.addEventListener('progress_text', ({detail}) => said.push(detail))
    window.user = {
        find, ends, said,
        output: (name, slot) => onPage(find(name).getOutputPos(slot)),
        input: (name, key) => onPage(find(name).getInputPos(find(name).findInputSlot(key))),
        widget: (name, key) => find(name).widgets.find(w => w.name === key),
        middle: (name, key) => {
            const node = find(name), y = user.widget(name, key).y
            return onPage([node.pos[0] + node.size[0] * 0.6, node.pos[1] + y + 10])
        },
        box: node => {
            const scale = app.canvas.ds.scale, title = LiteGraph.NODE_TITLE_HEIGHT
            const [x, y] = onPage([node.pos[0], node.pos[1] - title])
            return {x, y, width: node.size[0] * scale, height: (node.size[1] + title) * scale}
        },
    }
}

// Builds a graph on the canvas, and gives it back as the frontend saves it and as it exports it for the API.
async ({graph, groups, note, downloads, versions}) => {
    const GAP = 60, MARGIN = 30, TITLE = 80, WIDTH = 340
    const WIDTHS = {PreviewAny: 680}  // the lines of reports
    const HEIGHTS = {SaveImage: 400, PreviewImage: 400, PreviewAny: 420, LoadImage: 400, CLIPTextEncode: 180}
    const TEXT = 60  // what nodes of ours grow by to tell what they have done
    const NOTE = {width: 480, line: 15, letters: 80}
    app.graph.clear()
    const nodes = {}

    const place = (id, x, y) => {
        const {class_type, inputs, _meta} = graph[id]
        const node = nodes[id] = LiteGraph.createNode(class_type)
        node.title = _meta.title
        app.graph.add(node)
        for (const widget of node.widgets ?? []) {
            if (widget.name === 'control_after_generate') widget.value = 'fixed'
            if (widget.name in inputs) widget.value = inputs[widget.name]
        }
        const models = Object.values(inputs).filter(value => value in downloads)
            .map(name => ({name, url: `${downloads[name][0]}/${name}`, directory: downloads[name][1]}))
        if (models.length) node.properties.models = models
        const pack = class_type.startsWith('QuantFlux') ? 'quantflux' : 'comfy-core'
        Object.assign(node.properties, {cnr_id: pack, ver: versions[pack]})
        const [width, height] = node.computeSize()
        node.setSize([Math.max(width, WIDTHS[class_type] ?? WIDTH), Math.max(height, HEIGHTS[class_type] ?? 0)])
        node.pos = [x, y]
        return node
    }

    let x = 0
    for (const [title, columns] of groups) {
        const left = x
        let bottom = 0
        for (const ids of columns) {
            let y = 0, widest = 0
            for (const id of ids) {
                const node = place(id, x, y)
                const height = node.size[1] + (graph[id].class_type.startsWith('QuantFlux') ? TEXT : 0)
                widest = Math.max(widest, node.size[0])
                bottom = Math.max(bottom, y + height)
                y += height + GAP
            }
            x += widest + GAP
        }
        const group = new LiteGraph.LGraphGroup(title)
        group.pos = [left - MARGIN, -TITLE]
        group.size = [x - GAP - left + 2 * MARGIN, bottom + TITLE + MARGIN]
        app.graph.add(group)
        x += 2 * MARGIN
    }

    for (const [id, {inputs}] of Object.entries(graph)) {
        for (const [name, value] of Object.entries(inputs)) {
            if (!Array.isArray(value)) continue
            nodes[value[0]].connect(value[1], nodes[id], nodes[id].findInputSlot(name))
        }
    }

    const guide = LiteGraph.createNode('MarkdownNote')
    guide.title = 'Read me'
    app.graph.add(guide)
    const lines = note.split('\n').reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / NOTE.letters)), 0)
    guide.setSize([NOTE.width, lines * NOTE.line + 60])
    guide.pos = [-NOTE.width - GAP - MARGIN, -TITLE + 30]
    guide.widgets[0].value = note

    const {workflow, output} = await app.graphToPrompt()
    delete workflow.extra.ds  // the view of this canvas; without it, a canvas that opens the workflow shows all of it
    const ids = Object.fromEntries(Object.entries(nodes).map(([id, node]) => [String(node.id), id]))
    return JSON.stringify({workflow, output, ids})
}

"""What a person does on the host's canvas, by mouse and keyboard, and what is then to be seen there.

Holds for the frontends 1.32.9 and 1.58.1. A node is named by its type, such as "KSampler", or by its title where
several have one type.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from canvas import show
from comfy_host import ComfyHost
from playwright.sync_api import Locator, Page, TimeoutError, expect

KNOWN_NODE = "QuantFluxLoadTransformer"

# What a frontend says of itself, also of a stock workflow: it may not reach the internet, this host has not all the
# routes that a newer frontend asks for, and nothing is kept yet of a person who comes for the first time.
NOT_OURS = re.compile(
    r"Content Security Policy|Error fetching file size|loading core workflow templates"
    r"|JobsApiError|Failed to fetch (queue|jobs)"
    r"|status of 404 .*(/api/(jobs|userdata|users|experiment|assets)|/user\.css|/templates/index|favicon\.ico)"
    # a workflow that the host refuses
    r"|status of 400 .*/api/prompt|PromptExecutionError|Prompt outputs failed validation"
    r"|status of 404 .*/docs/\w+/en\.md"
    # 1.32.9: at its start, and when a choice in the list of nodes closes the list
    r"|reading 'id'\)\s+at onChange|setting 'value'\)\s+at Proxy\.on(OptionSelect|Change)"
)

ALERTS = ".p-toast-message, li[role=alert]"

# Waits until the canvas has been drawn anew.
DRAWN = (
    "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done))))"
)

TOOLS = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


class CanvasUser:
    """A person in front of the canvas of `host`, on the browser's `page`; `visit` is where to begin."""

    def __init__(self, page: Page, host: ComfyHost):
        self.page = page
        self._host = host
        self._said: list[str] = []
        page.on("pageerror", lambda error: self._said.append(f"uncaught: {error}"))
        page.on("console", lambda said: said.type == "error" and self._said.append(f"{said.text} {said.location}"))

    def visit(self, query: str = "") -> None:
        """Open the canvas, with a URL query such as "?template=…"."""
        show(self.page, self._host, KNOWN_NODE, query)
        self.page.wait_for_function("Boolean(app.extensionManager.workflow?.activeWorkflow?.activeState)")
        self.page.evaluate(TOOLS)

    def new_workflow(self) -> None:
        """An empty canvas, at its natural size."""
        self.command("Comfy.NewBlankWorkflow")
        self.page.wait_for_function("app.graph.nodes.length === 0")
        # the frontend puts the view of a new workflow where it wants it in a frame after that
        self.page.evaluate(DRAWN)
        self.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0] }")

    def command(self, name: str) -> None:
        """Run one of the frontend's commands, which are in its menus."""
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)

    # -- building a graph

    def find_node(self, display_name: str, x: int, y: int) -> None:
        """Double-click an empty place, type, press Enter; then click, for newer frontends let the new node follow the
        mouse until then."""
        self._double_click(x, y)
        self.page.keyboard.type(display_name)
        # Enter takes the one that is marked: the best match, once the list has kept up with the typing
        marked = self.page.locator("[role=option][aria-selected=true], [role=option].p-focus")
        expect(marked).to_contain_text(display_name, timeout=15_000)
        before = len(self.types())
        self.page.keyboard.press("Enter")
        self.page.wait_for_function("count => app.graph.nodes.length > count", arg=before)
        # elsewhere, lest it be the first of the next double-click
        self.page.mouse.click(x + 100, y - 200)

    def place(self, node_type: str, x: int, y: int, title: str | None = None) -> None:
        """Put a node on the canvas without the mouse."""
        self.page.evaluate(
            """([type, pos, title]) => {
                const node = LiteGraph.createNode(type)
                if (title) node.title = title
                app.graph.add(node)
                node.pos = pos
            }""",
            [node_type, [x, y], title],
        )

    def drag_link(self, source: str, output: int, target: str, key: str) -> None:
        """Drag from an output to the input `key` of another node."""
        self.page.evaluate(DRAWN)
        start = self.page.evaluate("([name, slot]) => user.output(name, slot)", [source, output])
        end = self.page.evaluate("([name, key]) => user.input(name, key)", [target, key])
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=4)
        self.page.mouse.up()

    def link(self, source: str, output: int, target: str, key: str) -> None:
        """The same without the mouse."""
        self.page.evaluate(
            """([source, output, target, key]) => {
                const to = user.find(target)
                user.find(source).connect(output, to, to.findInputSlot(key))
            }""",
            [source, output, target, key],
        )

    def choose(self, node: str, key: str, value: str) -> None:
        """Choose from a combo's list, by the mouse."""
        # a node that has not been drawn yet has no place for the mouse
        self.page.evaluate(DRAWN)
        self.page.mouse.click(*self.page.evaluate("([name, key]) => user.middle(name, key)", [node, key]))
        self.page.locator(".litecontextmenu .litemenu-entry").get_by_text(value, exact=True).click()

    def wait_for_choice(self, node_type: str, key: str, value: str) -> None:
        """Until a node that is placed now has `value` in a combo's list, which the frontend reads anew some time after
        it has been asked to."""
        self.page.wait_for_function(
            """([type, key, value]) => {
                const { values } = LiteGraph.createNode(type).widgets.find(widget => widget.name === key).options
                return (typeof values === "function" ? values() : values).includes(value)
            }""",
            arg=[node_type, key, value],
        )

    def write(self, node: str, key: str, text: str) -> None:
        """Write into a text field, by the keyboard, in place of what is there."""
        field = self.page.evaluate_handle("([name, key]) => user.widget(name, key).element", [node, key]).as_element()
        field.fill(text)

    def set(self, node: str, **values: object) -> None:
        """Give widgets their values without mouse or keyboard."""
        self.page.evaluate(
            "([name, values]) => { for (const key in values) user.widget(name, key).value = values[key] }",
            [node, values],
        )

    # -- opening a workflow

    def choose_file(self, file: Path) -> None:
        """Open a file through the browser's file dialog."""
        self.page.set_input_files("#comfy-file-input", file)

    def drop_file(self, file: Path, x: int = 900, y: int = 900) -> None:
        """Drag a file from the desktop and drop it on the canvas."""
        browser = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for event in ("dragEnter", "dragOver", "drop"):
            browser.send("Input.dispatchDragEvent", {"type": event, "x": x, "y": y, "data": data})
        browser.detach()

    def open_template(self, name: str) -> None:
        """Open the template browser and click a template."""
        self.command("Comfy.BrowseTemplates")
        self.page.locator(f"[data-testid=template-workflow-{name}]").click()

    def wait_for_nodes(self, count: int) -> None:
        """Wait until the canvas has this many nodes, and until it has drawn them."""
        self.page.wait_for_function("count => app.graph.nodes.length === count", arg=count)
        self.page.evaluate(DRAWN)

    # -- running it

    def run(self) -> str:
        """Press Run and return the host's last word: "execution_success", "execution_error" or "refused"."""
        self.page.evaluate("() => { user.ends.length = 0 }")
        with self.page.expect_response(lambda answer: answer.url.endswith("/api/prompt")) as queued:
            self.page.click("[data-testid=queue-button]")
        if queued.value.status != 200:
            return "refused"
        self.page.wait_for_function("user.ends.length > 0", timeout=120_000)
        return self.page.evaluate("user.ends[0]")

    def read_error(self) -> str:
        """Read the error dialog and close it; in newer frontends a note, and the panel that its button opens."""
        dialog, note = self.page.locator("[role=dialog]"), self.page.locator("[data-testid=error-overlay]")
        dialog.or_(note).first.wait_for()
        if not note.count():
            text = "\n".join(dialog.all_inner_texts())
            while dialog.count():
                self.page.keyboard.press("Escape")
                self.page.wait_for_timeout(100)  # it fades away
            return text
        text = note.inner_text()
        self.page.click("[data-testid=error-overlay-see-errors]")
        panel = self.page.locator("[data-testid=properties-panel]")
        self._wait_until_still(panel)
        text += "\n" + panel.inner_text()
        self.page.get_by_role("button", name="Toggle properties panel").click()
        panel.wait_for(state="hidden")
        return text

    # -- what is to be seen

    def types(self) -> list[str]:
        """The types of the nodes on the canvas, sorted."""
        return self.page.evaluate("app.graph.nodes.map(node => node.type).sort()")

    def links(self) -> set[tuple[str, int, str, str]]:
        """All links, each as title and slot of the output, title and name of the input."""
        found = self.page.evaluate(
            """[...app.graph.links.values()].map(link => {
                const from = app.graph.getNodeById(link.origin_id), to = app.graph.getNodeById(link.target_id)
                return [from.title, link.origin_slot, to.title, to.inputs[link.target_slot].name]
            })"""
        )
        return {tuple(link) for link in found}

    def unknown_nodes(self) -> list[str]:
        """Types of the nodes that this host does not have: the red ones."""
        return self.page.evaluate(
            "app.graph.nodes.filter(node => !(node.type in LiteGraph.registered_node_types)).map(node => node.type)"
        )

    def alerts(self) -> list[str]:
        """What the notes in the corner say, such as that a workflow is invalid."""
        return self.page.locator(ALERTS).all_inner_texts()

    def has_problems(self) -> bool:
        """Whether a dialog or a note tells of problems."""
        return self.page.locator("[role=dialog]:visible, [data-testid=error-overlay]").count() > 0

    def out_of_view(self) -> list[str]:
        """Types of the nodes that are not wholly on the screen."""
        return self.page.evaluate(
            """app.graph.nodes.filter(node => {
                const {x, y, width, height} = user.box(node)
                return x < 0 || y < 0 || x + width > innerWidth || y + height > innerHeight
            }).map(node => node.type)"""
        )

    def picture_of(self, node: str) -> bytes:
        """A PNG of a node as it is on the screen."""
        self.page.evaluate(DRAWN)
        return self.page.screenshot(clip=self.page.evaluate("name => user.box(user.find(name))", node))

    def faults(self) -> list[str]:
        """Errors on the browser's console, less those that the frontend has of itself; asking empties the list."""
        said, self._said = self._said, []
        return [text for text in said if not NOT_OURS.search(text)]

    def _double_click(self, x: int, y: int) -> None:
        """Double-click until a search field opens: on a busy machine the first may be too slow to count as one."""
        field = self.page.locator("input:focus")
        for _ in range(5):
            self.page.mouse.dblclick(x, y)
            with suppress(TimeoutError):
                return field.wait_for(timeout=3_000)
        raise AssertionError("a double-click on the canvas opens no search field")

    def _wait_until_still(self, place: Locator) -> None:
        """Wait until the words in a place stay as they are for a moment."""
        place.wait_for()
        before = ""
        while (now := place.inner_text()) != before:
            before = now
            self.page.wait_for_timeout(200)

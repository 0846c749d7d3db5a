// The views, one at a time; which one is in the address, so that it can be gone back to.
// Source: the ARIA Authoring Practices Guide, "Tabs".

import { find } from "./dom.js";
import { rove } from "./roving.js";

/** `onShow[view]()` is called when that view is shown. */
export function startTabs(onShow) {
  const list = find("[role=tablist]");
  const tabs = [...list.children];
  // Not the id itself: an address that names an element has the browser scroll there.
  const viewOf = (tab) => tab.getAttribute("aria-controls").replace("view-", "");
  const roving = rove(list, "[role=tab]", (tab) => go(viewOf(tab)));

  function go(view) {
    if (location.hash !== `#${view}`) location.hash = view;
  }

  function show() {
    const asked = tabs.find((tab) => `#${viewOf(tab)}` === location.hash) ?? tabs[0];
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === asked));
      find(`#view-${viewOf(tab)}`).hidden = tab !== asked;
    }
    roving.go(asked);
    document.body.dataset.view = viewOf(asked);
    onShow[viewOf(asked)]?.();
  }

  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) go(viewOf(tab));
  });
  addEventListener("hashchange", show);
  show();
}

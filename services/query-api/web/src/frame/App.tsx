/** The frame around every page: rail or bottom bar, header, connection bar. */
import { useEffect } from "preact/hooks";
import { t } from "../messages/language";
import { MachinePage } from "../pages/machine/MachinePage";
import { MissingPage } from "../pages/MissingPage";
import { WallPage } from "../pages/wall/WallPage";
import { route } from "../routing/router";
import { ConnectionBar } from "./ConnectionBar";
import { Header } from "./Header";
import { Rail } from "./Rail";

function Page() {
  const where = route.value;
  switch (where.page) {
    case "wall":
      return <WallPage />;
    case "machine":
      return <MachinePage key={where.id} id={where.id} />;
    case "missing":
      return <MissingPage />;
  }
}

function useTitle(): void {
  const where = route.value;
  const name = where.page === "machine" ? where.id : t("wall.title");
  useEffect(() => {
    document.title = `${name} · ${t("product")}`;
  }, [name]);
}

export function App() {
  useTitle();
  return (
    <div class="frame">
      <a class="skip" href="#content">
        {t("nav.skip")}
      </a>
      <Rail />
      <Header />
      <main id="content" tabIndex={-1}>
        <ConnectionBar />
        <Page />
      </main>
    </div>
  );
}

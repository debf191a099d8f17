// What Grafana's published schema (@grafana/schema) says a dashboard is, for JSON: `cargo xtask lint` checks every file of
// deploy/dashboards by `satisfies Checked`. The schema has enums, which TypeScript tells from their own values; and it knows
// the options of each kind of panel, but not in the type of a dashboard.
import type { Dashboard, Panel, VariableModel } from '@grafana/schema';
import type { Options as BarGauge } from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type { Options as Stat } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type { Options as StateTimeline } from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type { Options as Table } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type { Options as TimeSeries } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

type Plain<T> = T extends string
  ? `${T}`
  : T extends readonly (infer Item)[]
    ? Plain<Item>[]
    : T extends object
      ? { [Key in keyof T]: Plain<T[Key]> }
      : T;

type Of<Kind extends string, Options> = Omit<Plain<Panel>, 'type' | 'options'> & {
  type: Kind;
  options: Partial<Plain<Options>>;
};

type AnyPanel =
  | Of<'bargauge', BarGauge>
  | Of<'stat', Stat>
  | Of<'state-timeline', StateTimeline>
  | Of<'table', Table>
  | Of<'timeseries', TimeSeries>;

export type Checked = Omit<Plain<Dashboard>, 'panels' | 'templating'> & {
  panels: AnyPanel[];
  templating: { list: Plain<VariableModel>[] };
};
